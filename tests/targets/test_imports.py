from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_BLOCK = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None  # an import of it raises ImportError
"""
_USE = """
import targets, targets.provenance, targets.elf, targets.device, targets.boards, targets.host, targets.host.features
from targets.boards import load_board
from targets.read_board import board_from_json
board_from_json(load_board("rk3588").to_json())
load_board("host", measure=False)
"""


def run(blocked: list[str], code: str) -> subprocess.CompletedProcess[str]:
    script = _BLOCK.format(blocked=blocked) + code
    return subprocess.run(
        [sys.executable, "-c", script], cwd=_ROOT, capture_output=True, text=True, check=False, env={"PYTHONPATH": "."}
    )


def test_boards_need_neither_tvm_nor_numpy() -> None:
    done = run(["tvm", "tvm_ffi", "onnx", "numpy"], _USE)
    assert done.returncode == 0, done.stderr


def test_the_block_is_felt() -> None:
    done = run(
        ["tvm"],
        "from targets.cpu import core\nfrom targets.cpu.target import tvm_target\ntvm_target(core('cortex-a55'))",
    )
    assert "import of tvm halted" in done.stderr or "No module named 'tvm" in done.stderr


def test_the_device_reads_a_board_without_tomllib() -> None:
    done = run(["tomllib", "tvm", "numpy"], "import targets.device, targets.provenance, targets.errors")
    assert done.returncode == 0, done.stderr
