"""A coverage-guided fuzzer on the readers that parse bytes by hand.

Atheris reads the coverage of those in Python (safetensors header, ONNX protobuf, manifest), libFuzzer that of the C++
program cache. A reader may refuse in its own way alone; anything else is a failure, with the bytes that make it.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from requirements import need, need_program

from targets.opencl.runtime import SOURCES
from tests.attack.figure import Figures
from tests.attack.workers import HERE, ROOT

_PLANTED = 400  # inputs until a planted defect is found
FULL = 600  # seconds of all readers together
PYTHON = ("safetensors", "proto", "manifest")
NO_ATHERIS = "no atheris (pip install -e '.[dev]', Python 3.11 to 3.13 on x86-64)"


def atheris_is_there() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("atheris") is not None


def attack(count: int, first: int, jobs: int, plant: bool = False) -> Figures:
    """Fuzz each reader for its share of `count` seconds; `first` is the seed.

    `plant` puts a defect into each, and gives each a number of inputs in place of a time: so the machine's speed does
    not decide whether it is found.
    """
    need(atheris_is_there(), NO_ATHERIS)
    figures = Figures("readers", f"libFuzzer's -seed={first + 1}")
    limit = f"-runs={_PLANTED}" if plant else f"-max_total_time={max(1, count // (len(PYTHON) + 1))}"
    with tempfile.TemporaryDirectory(prefix="hsd-readers-") as name:
        folder = Path(name)
        for reader in PYTHON:
            command = [sys.executable, str(HERE / "reader_worker.py"), reader, "plant" if plant else "-"]
            _fuzz(figures, reader, command, folder, limit, first)
        _fuzz(figures, "program cache", [str(_cache_fuzzer(folder, plant))], folder, limit, first)
    return figures


def _clang() -> Path:
    """A clang++ that has libFuzzer beside it."""
    installed = [Path(need_program("clang++")), *sorted(Path("/usr/lib").glob("llvm-*/bin/clang++"))]
    for program in installed:
        done = subprocess.run([program, "-print-resource-dir"], capture_output=True, text=True, check=True)
        if list(Path(done.stdout.strip()).glob("lib/linux/libclang_rt.fuzzer-*.a")):
            return program
    need(False, "no libFuzzer (Debian's libclang-rt-14-dev)")
    raise AssertionError


def _cache_fuzzer(folder: Path, plant: bool) -> Path:
    program = folder / "cache_fuzzer"
    flags = ["-std=c++17", "-g", "-O1", "-fsanitize=fuzzer,address,undefined", f"-I{SOURCES}"]
    sources = [HERE / "cache_fuzzer.cc", SOURCES / "binary_cache.cc", SOURCES / "sha256.cc"]
    planted = ["-DPLANT"] if plant else []
    subprocess.run([_clang(), *flags, *planted, *sources, "-o", program], check=True)
    return program


def _fuzz(figures: Figures, reader: str, command: list[str], folder: Path, limit: str, seed: int) -> None:
    work = folder / reader.replace(" ", "_")
    work.mkdir()
    options = [limit, f"-seed={seed + 1}", "-max_len=65536", "-rss_limit_mb=4096", "-timeout=20"]
    options += [f"-artifact_prefix={work}/", "-print_final_stats=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HSD_FUZZ_FOLDER": str(work)}
    done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, cwd=work, check=False)
    stats = dict(line[6:].split(":") for line in done.stderr.splitlines() if line.startswith("stat::"))
    figures.counts[f"{reader} inputs"] += int(stats.get("number_of_executed_units", 0))
    if done.returncode != 0 or not stats:
        found = [
            path.read_bytes().hex() for path in work.iterdir() if path.name.startswith(("crash", "timeout", "oom"))
        ]
        figures.failures.append(
            f"{reader}: {[content[:400] for content in found]}: {done.stdout[-500:]} {done.stderr[-1500:]}"
        )
