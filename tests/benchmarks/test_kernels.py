"""benchmarks/kernels.py runs to its end; what it measures decides nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_measures_each_number_of_rows() -> None:
    options = ["--repeats", "1", "--shapes", "64x64", "--formats", "int4", "--megabytes", "0", "--json"]
    command = [sys.executable, "benchmarks/kernels.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)["table"]
    assert [line["n"] for line in table] == [1, 2, 4, 8, 32, 128]
    assert all(line["us"] > 0 and line["over_onnxruntime"] > 0 for line in table)
