"""Boards by name or by file: one TOML file a board, every number with its kind and source.

To add a board, copy one of the files here: no code changes. A number that nobody measured has kind = "assumed" and its
reasoning as source. ``host`` is this machine, described when it is asked for; ``host-split`` is the same machine with
its CPUs in two clusters, so that a drafter and a target can be placed on processors of their own.
"""

from __future__ import annotations

from pathlib import Path

from targets.cpu import core_tables
from targets.device import Board
from targets.errors import UserError
from targets.files import read_toml
from targets.host.calibrated import LARGEST_FILE_BYTES, MADE  # the longest file here has 8 KB
from targets.read_board import read_board

_FOLDER = Path(__file__).parent


def board_names() -> list[str]:
    """Names that ``load_board`` knows, sorted, ``host`` among them."""
    return sorted([path.stem for path in _FOLDER.glob("*.toml")] + ["host", "host-split"])


def load_board(name_or_path: str | Path, measure: bool = True, calibrated: bool = True) -> Board:
    """The board of that name, this machine for ``host``, or the one that a ``.toml`` file describes.

    Args:
        name_or_path: one of ``board_names()``, or a path ending in ``.toml``.
        measure: for ``host``: measure the DRAM bandwidth, about one second, where no calibration is used.
        calibrated: for ``host``: take what `hetero-sd calibrate --board host` wrote, if it still holds
            (targets/host/calibrated.py).

    Raises:
        UserError: unknown name (the known ones are listed), unreadable file, or a file that is no valid board.
    """
    text = str(name_or_path)
    if text in ("host", "host-split"):
        from targets.host import host_board
        from targets.host.calibrated import find

        found = find(host_board(measure=False)) if text == "host" and calibrated else None
        if found is not None and found.board is not None:
            return found.board
        return host_board(measure=measure, split=text == "host-split")
    if text.endswith(".toml"):
        return _read_file(Path(text))
    if text not in board_names():
        raise UserError(
            f"board {text!r} is not known; known boards: {', '.join(board_names())}; or give the path of a .toml file"
        )
    return _read_file(_FOLDER / f"{text}.toml")


def _read_file(path: Path) -> Board:
    table = read_toml(path, LARGEST_FILE_BYTES)
    table.pop(MADE, None)  # of a file that `calibrate --board host` wrote
    return read_board(table, str(path), core_tables())
