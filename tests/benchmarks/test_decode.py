"""benchmarks/decode.py runs to its end; what it measures decides nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "data" / "exports" / "llama-dynamo-fp32" / "model.onnx"


@pytest.mark.slow
def test_it_measures_each_width() -> None:
    command = [sys.executable, "benchmarks/decode.py", "--repeats", "1", "--model", str(MODEL), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    rounds = json.loads(done.stdout)["rounds"]
    assert [measured["n"] for measured in rounds] == ["1", "4", "8", "prompt 128"]
    assert all(measured["ours_s"] > 0 for measured in rounds)
