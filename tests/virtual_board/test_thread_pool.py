"""The thread pool for AArch64 under stress in the emulator: its atomics, its futexes, its forks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from targets.cpu import pool

pytestmark = [pytest.mark.slow, pytest.mark.virtual_board]
_STRESS = Path(__file__).parents[1] / "targets" / "cpu" / "pool_stress.c"


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a76"])
def test_stress_on_the_board(virtual_board: Any, tmp_path: Path, cpu: str) -> None:
    cache = str(Path.home() / ".cache" / "hetero_sd" / "zig")
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache}
    command = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        "aarch64-linux-gnu.2.28",
        "-std=c11",
        "-O2",
        "-pthread",
    ]
    sources = [str(_STRESS), *map(str, pool.SOURCES.glob("*.c"))]
    subprocess.run([*command, *sources, "-o", str(tmp_path / "stress")], check=True, env=environment, cwd=tmp_path)
    done = virtual_board.run(["/job/stress", "5000", "1"], mounts={tmp_path: ("/job", True)}, cpu=cpu)
    assert done.returncode == 0, done.stdout + done.stderr
    words = done.stdout.split()
    assert int(words[3]) > int(words[1]) > 1000  # tasks, regions
    assert int(words[6]) > 0  # tasks of workers
