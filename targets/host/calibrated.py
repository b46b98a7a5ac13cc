"""The board file of this machine that `hetero-sd calibrate --board host` wrote, and whether it still holds.

It lies in the user's configuration folder ($XDG_CONFIG_HOME, else ~/.config) as hetero_sd/host.toml: a board file with
one table more, `made`, which says for which CPU and for which kernels it was measured. `--board host` takes it where
both are still the same; memory sizes are read anew, because a container's limit may have changed.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from targets.device import Board
from targets.errors import UserError
from targets.files import read_toml
from targets.host.cpuinfo import core_name, read_cpus
from targets.read_board import read_board

MADE = "made"
LARGEST_FILE_BYTES = 256 * 1024
_KERNELS = Path(__file__).resolve().parent.parent / "cpu"
_SOURCES = ("*.py", "kernels/*.py", "pool/src/*.[ch]")
_LONGEST = 200  # characters of a text in `made`


@dataclass(frozen=True)
class Found:
    """The file, and what became of it.

    Attributes:
        path: of the file.
        board: what it describes; None where it is ignored.
        date: when it was made, "" where it does not say.
        ignored: why it is, in one line; "" where it is used.
    """

    path: Path
    board: Board | None
    date: str
    ignored: str


def calibrated_path() -> Path | None:
    """Where the file lies or would lie; None without a home folder."""
    stated, home = os.environ.get("XDG_CONFIG_HOME", ""), os.environ.get("HOME", "")
    base = Path(stated) if stated.startswith("/") else Path(home) / ".config" if home.startswith("/") else None
    return None if base is None else base / "hetero_sd" / "host.toml"


def made_here(date: str, root: Path = Path("/")) -> dict[str, str]:
    """The table `made` of a file that is written now."""
    return {"cpu": cpu_identity(root), "kernels": kernels_version(), "date": date}


def cpu_identity(root: Path = Path("/")) -> str:
    """The CPUs that this process may use, by model and number: ``2 x AMD EPYC (25/1/1)``."""
    cpus = read_cpus(root)
    usable = os.sched_getaffinity(0) if root == Path("/") and hasattr(os, "sched_getaffinity") else set(cpus)
    names = Counter(_model(fields) for cpu, fields in cpus.items() if cpu in usable)
    return " + ".join(f"{count} x {name}" for name, count in sorted(names.items()))[:_LONGEST]


def _model(fields: dict[str, str]) -> str:
    if "CPU part" in fields:
        return core_name(fields)
    numbers = "/".join(fields.get(key, "?") for key in ("cpu family", "model", "stepping"))
    return f"{fields.get('model name', 'unknown CPU')} ({numbers})"


def kernels_version() -> str:
    """A hash of the sources of the CPU kernels and of the thread pool: factors are fitted to their times."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in _KERNELS.glob(pattern)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def find(live: Board | None = None, root: Path = Path("/")) -> Found | None:
    """The file, where there is one; `live` is this machine as it describes itself, for the sizes of its memory.

    None in a bundle, too, which has no sources of kernels and asks for no board host.
    """
    path = calibrated_path()
    if path is None or not path.is_file() or not (_KERNELS / "kernels").is_dir():
        return None
    try:
        table = read_toml(path, LARGEST_FILE_BYTES)
        made = table.pop(MADE, None)
        made = made if isinstance(made, dict) else {}
        date = str(made.get("date", ""))[:_LONGEST]
        if made.get("cpu") != cpu_identity(root):
            was = str(made.get("cpu", "an unknown CPU"))[:_LONGEST]
            return _ignored(path, date, f"it was made for {was}, this is {cpu_identity(root)}")
        if made.get("kernels") != kernels_version():
            return _ignored(path, date, "it was made with other kernels than this version's")
        return Found(path, _with_memory(read_board(table, str(path), {}), live), date, "")
    except UserError as error:
        return _ignored(path, "", str(error).removeprefix(f"{path}: "))


def _ignored(path: Path, date: str, why: str) -> Found:
    return Found(path, None, date, f"{path} is ignored: {why}; write it anew with hetero-sd calibrate --board host")


def _with_memory(board: Board, live: Board | None) -> Board:
    """The board with the memory that there is now."""
    if live is None:
        return board
    sizes: dict[str, Any] = {n: getattr(live.dram, n) for n in ("capacity_bytes", "reserved_bytes")}
    return replace(board, dram=replace(board.dram, **sizes))
