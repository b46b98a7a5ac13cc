"""A model of 1B-parameter shape compiles beside its weights, not in twice their size."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from passes.synthetic import LLAMA_1B, write_llama

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "tests" / "data" / "exports" / "llama-dynamo-fp32"

# In a process of its own, because the peak of a process never falls. Not ru_maxrss: a child starts with its parent's.
COMPILE = """
import sys
from hetero_sd.cli import main
code = main(sys.argv[1:])
status = open("/proc/self/status").read()
print(1024 * int(status.split("VmHWM:")[1].split()[0]))
sys.exit(code)
"""


@pytest.mark.slow
def test_peak_memory_of_a_1b_model(tmp_path: Path) -> None:
    if shutil.disk_usage(tmp_path).free < 8 << 30:
        pytest.skip("less than 8 GB of disk free: the model and its bundle need 5 GB")
    model = tmp_path / "model.onnx"
    write_llama(model, LLAMA_1B, "float16")
    weight_bytes = 2 * LLAMA_1B.parameters
    assert weight_bytes > 2 << 30  # more than one protobuf file can hold
    argv = ["compile", model, "--tokenizer", TOKENIZER, "--board", "host", "--out", tmp_path / "bundle"]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *map(str, argv)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak_bytes = int(done.stdout.splitlines()[-1])
    assert peak_bytes < 1.3 * weight_bytes
    packed = tmp_path / "bundle" / "weights" / "target.safetensors"
    assert weight_bytes <= packed.stat().st_size < 1.01 * weight_bytes
    print(f"peak {peak_bytes / 1e9:.2f} GB for {weight_bytes / 1e9:.2f} GB of weights")
