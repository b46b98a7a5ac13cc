"""`--on USER@BOARD` with a board that is AArch64: an sshd on loopback whose python3 is the virtual board's.

It has no packages but those of the bundle. Its times are an emulator's, so that what is fitted says nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sshd import HOST, Sshd, running_sshd

from hetero_sd.cli import main
from hetero_sd.compile.compile import compile_bundle
from hetero_sd.compile.request import CompileRequest
from hetero_sd.on_board.calibrate import OnBoardRequest, calibrate_on
from hetero_sd.on_board.ssh import Board
from hetero_sd.progress import Progress

pytestmark = [pytest.mark.deep, pytest.mark.virtual_board]

_PAIR = Path(__file__).resolve().parents[2] / "examples" / "translation"
_DRAFT = _PAIR / "draft" / "model.onnx"
_TEXT = "The dog sleeps."


@pytest.fixture(scope="module")
def arm_board(virtual_board: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with running_sshd(tmp_path_factory.mktemp("sshd"), virtual_board.shell_python) as made:
        yield made


@pytest.fixture(scope="module")
def bundle(virtual_board: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's drafter alone, with its packages, for a board with A55."""
    out = tmp_path_factory.mktemp("bundle") / "small"
    request = CompileRequest(_DRAFT, _PAIR, "imx93", out, context=64, vendor_python=virtual_board.python)
    compile_bundle(request, Progress(quiet=True))
    return out


def test_a_bundle_is_copied_runs_and_is_measured_there(
    arm_board: Sshd,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", f"{arm_board.bin}{os.pathsep}{os.environ['PATH']}")
    here = tmp_path / "host"
    compile_bundle(CompileRequest(_DRAFT, _PAIR, "host", here, context=64), Progress(quiet=True))
    asked = ["--prompt", _TEXT, "--max-new-tokens", "8", "--json"]
    expected = subprocess.run(
        [sys.executable, str(here / "run.py"), *asked], capture_output=True, text=True, check=True
    )
    capfd.readouterr()

    assert main(["run", "--on", HOST, str(bundle), "--", *asked]) == 0
    answer = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert answer["token_ids"] == json.loads(expected.stdout)["token_ids"]  # which an x86-64 bundle could not give

    assert main(["doctor", str(bundle), "--on", HOST]) == 0
    assert "aarch64" in capfd.readouterr().out

    there = Board(HOST)
    request = OnBoardRequest(bundle, _DRAFT, seconds=6)
    found = calibrate_on(there, request, Progress(quiet=True))
    assert found.board.name == "imx93"
    assert found.board.provenance["clusters.a55.bandwidth_one_thread_gb_per_s"].kind == "measured"
    assert {residual.point.cluster for residual in found.fit.residuals} == {"a55"}
    assert not list((arm_board.home / "hetero_sd").glob("*.parts"))
