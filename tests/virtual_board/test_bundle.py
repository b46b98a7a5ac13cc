"""The whole way: an ONNX pair compiled for an Arm board answers on the virtual board as it does here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hetero_sd.compile import CompileRequest, compile_bundle
from hetero_sd.progress import Progress

pytestmark = [pytest.mark.slow, pytest.mark.virtual_board]

_EXPORTS = Path(__file__).parents[1] / "data" / "exports"
_REQUEST = ["--prompt", "The dog sleeps.", "--max-new-tokens", "16", "--json", "--threads", "2"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same pair compiled for an emulated board and for this machine."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for board in ("imx95", "host"):
        made[board] = folder / board
        request = CompileRequest(
            target=_EXPORTS / "llama-dynamo-fp32" / "model.onnx",
            draft=_EXPORTS / "llama-drafter-dynamo-fp32" / "model.onnx",
            tokenizer=_EXPORTS / "llama-dynamo-fp32",
            board=board,
            out=made[board],
            context=128,
        )
        compile_bundle(request, Progress())
    return made


def answer(virtual_board: Any, bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = virtual_board.run(
        ["/usr/bin/python3", "/bundle/run.py", *_REQUEST, *options], mounts={bundle: ("/bundle", True)}
    )
    return done


def test_the_board_gives_the_tokens_of_the_host(virtual_board: Any, bundles: dict[str, Path]) -> None:
    command = [sys.executable, str(bundles["host"] / "run.py"), *_REQUEST, "--mode", "target-only"]
    here = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    modes = {}
    for mode in ("target-only", "speculative"):
        done = answer(virtual_board, bundles["imx95"], "--mode", mode)
        assert done.returncode == 0, done.stderr
        modes[mode] = json.loads(done.stdout)
    assert modes["target-only"]["token_ids"] == here["token_ids"]  # one build differs from another by rounding only
    assert modes["speculative"]["token_ids"] == modes["target-only"]["token_ids"]
    assert modes["speculative"]["stats"]["drafted"] > 0
    assert len(here["token_ids"]) == 16


def test_a_damaged_weight_is_noticed_on_the_board(virtual_board: Any, bundles: dict[str, Path], tmp_path: Path) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(bundles["imx95"], damaged)
    weights = damaged / "weights" / "target.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done = answer(virtual_board, damaged, "--check")
    assert done.returncode == 2
    assert "target.safetensors" in done.stderr
    assert "Traceback" not in done.stderr
