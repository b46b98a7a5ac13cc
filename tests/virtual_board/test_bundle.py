"""The whole way: the example pair compiled for an Arm board answers on the virtual board as it does here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hetero_sd.compile.compile import compile_bundle
from hetero_sd.compile.request import CompileRequest
from hetero_sd.progress import Progress
from hetero_sd.verify import VerifyRequest, verify_bundle

pytestmark = [pytest.mark.slow, pytest.mark.virtual_board]

_PAIR = Path(__file__).resolve().parents[2] / "examples" / "translation"
_PROMPTS = 4


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prompts")
    lines = (_PAIR / "prompts.txt").read_text("utf-8").splitlines()[:_PROMPTS]
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def bundles(virtual_board: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pair compiled for an emulated board, with the packages it needs inside, and for this machine."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for board, python in (("imx95", virtual_board.python), ("host", None)):
        made[board] = folder / board
        request = CompileRequest(
            target=_PAIR / "target" / "model.onnx",
            draft=_PAIR / "draft" / "model.onnx",
            tokenizer=_PAIR,
            board=board,
            out=made[board],
            context=128,
            gamma=2,
            vendor_python=python,
        )
        compile_bundle(request, Progress())
    return made


def on_board(virtual_board: Any, mounts: dict[Path, tuple[str, bool]], *options: str) -> Any:
    """run.py on the board with nothing but what the bundle carries."""
    argv = ["/usr/bin/python3", "/bundle/run.py", "--threads", "2", *options]
    return virtual_board.run(argv, mounts=mounts, env={"PYTHONPATH": ""})


def tokens(output: str) -> list[list[int]]:
    return [json.loads(line)["token_ids"] for line in output.splitlines()]


def test_the_board_gives_the_tokens_of_the_host(
    virtual_board: Any, bundles: dict[str, Path], prompts: Path, tmp_path: Path
) -> None:
    here = [sys.executable, str(bundles["host"] / "run.py"), "--prompts", str(prompts / "prompts.txt"), "--json"]
    expected = tokens(subprocess.run(here, capture_output=True, text=True, check=True).stdout)
    assert len(expected) == _PROMPTS
    assert all(len(ids) > 3 for ids in expected)
    mounts = {bundles["imx95"]: ("/bundle", True), prompts: ("/prompts", True), tmp_path: ("/out", False)}
    question = ["--prompts", "/prompts/prompts.txt", "--json"]
    for mode in (["--mode", "target-only", "--save-logits", "/out/logits"], ["--mode", "speculative"]):
        done = on_board(virtual_board, mounts, *question, *mode)
        assert done.returncode == 0, done.stderr
        assert tokens(done.stdout) == expected, mode
    assert sum(json.loads(line)["stats"]["drafted"] for line in done.stdout.splitlines()) > 0
    assert {json.loads(line)["stats"]["threads"]["pool"] for line in done.stdout.splitlines()} == {"ours"}
    result = verify_bundle(VerifyRequest(bundles["imx95"], _PAIR / "target" / "model.onnx", saved=tmp_path / "logits"))
    assert result.passed, result


@pytest.mark.deep
def test_a_damaged_library_is_refused_on_the_board(
    virtual_board: Any, bundles: dict[str, Path], tmp_path: Path
) -> None:
    damaged = tmp_path / "bundle"
    shutil.copytree(bundles["imx95"], damaged)
    library = damaged / "lib" / "target_cpu.so"
    data = bytearray(library.read_bytes())
    data[-1] ^= 1
    library.write_bytes(data)
    done = on_board(virtual_board, {damaged: ("/bundle", True)}, "--prompt", "The dog sleeps.")
    assert done.returncode == 2
    assert "target_cpu.so" in done.stderr
    assert "Traceback" not in done.stderr
