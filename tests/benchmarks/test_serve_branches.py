"""benchmarks/serve_branches.py runs to its end and finds equal texts; what it measures decides nothing here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "data" / "exports" / "llama-dynamo-fp32" / "model.onnx"


@pytest.mark.slow
def test_it_measures_branches_on_and_off() -> None:
    options = ["--texts", "1", "--repeats", "2", "--alpha", "0.1", "--beta", "0.9", "--model", str(MODEL)]
    command = [sys.executable, "benchmarks/serve_branches.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.search(r"1 at a time: [\d.]+ times less CPU with branches, [\d.]+ times fewer rounds", done.stdout)
    found = re.search(r"(\d+) branches, (\d+) won", done.stdout)
    assert found is not None
    assert int(found[2]) <= int(found[1])
