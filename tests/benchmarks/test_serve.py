"""benchmarks/serve.py runs to its end and finds equal texts; what it measures decides nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "data" / "exports" / "llama-dynamo-fp32" / "model.onnx"


@pytest.mark.slow
def test_it_measures_requests_together_and_one_after_the_other() -> None:
    options = ["--requests", "3", "--repeats", "1", "--model", str(MODEL), "--json"]
    command = [sys.executable, "benchmarks/serve.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["rounds"]) == 1
    assert all(value > 0 for value in found["rounds"][0].values())
    assert set(found["ratios"]) == {"speed", "cpu", "gap", "counted_out"}
