"""Models larger than a protobuf file can hold compile beside their weights, not in twice their size."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from requirements import need

from passes.onnx import canonicalise
from passes.synthetic import LLAMA_1B, LLAMA_3B, LlamaShape, write_llama

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


@dataclass(frozen=True)
class Compiled:
    """What compiling a large model took."""

    source_bytes: int
    packed_bytes: int
    peak_bytes: int
    progress: str


def compiled(folder: Path, shape: LlamaShape, dtype: str, file_bytes: int | None, *options: str) -> Compiled:
    free = shutil.disk_usage(folder).free
    need(free >= 9 << 30, "less than 9 GiB of disk free", "the model and its bundle need 6 GB: free some")
    model = folder / "model.onnx"
    write_llama(model, shape, dtype, file_bytes=file_bytes)
    source_bytes = sum(p.stat().st_size for p in folder.iterdir())
    argv = ["compile", model, "--tokenizer", TOKENIZER, "--board", "host", "--out", folder / "bundle", *options]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *map(str, argv)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    packed_bytes = (folder / "bundle" / "weights" / "target.safetensors").stat().st_size
    for path in [*folder.glob("model.onnx*"), folder / "bundle"]:  # pytest keeps the last three folders
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = Compiled(source_bytes, packed_bytes, int(done.stdout.splitlines()[-1]), done.stderr)
    print(f"peak {found.peak_bytes / 1e9:.2f} GB for {source_bytes / 1e9:.2f} GB of weights")
    return found


@pytest.mark.deep
def test_peak_memory_of_a_1b_model(tmp_path: Path) -> None:
    found = compiled(tmp_path, LLAMA_1B, "float16", None)
    assert found.source_bytes > 2 << 30  # more than one protobuf file can hold
    assert found.peak_bytes < 1.3 * found.source_bytes
    assert 2 * LLAMA_1B.parameters <= found.packed_bytes < 1.01 * found.source_bytes


@pytest.mark.deep
def test_peak_memory_of_a_3b_model_of_int4_in_many_files(tmp_path: Path) -> None:
    """Measured: 0.72 of its size; the largest weight, the embedding, is in memory twice while it is packed."""
    found = compiled(tmp_path, LLAMA_3B, "int4", 500 << 20)
    assert found.source_bytes > 2 << 30
    assert found.peak_bytes < 1.0 * found.source_bytes
    assert 0.99 * found.source_bytes < found.packed_bytes < 1.01 * found.source_bytes
    for step in ("target: import model.onnx", "target: compile for", "hash the files"):
        assert re.search(rf"{re.escape(step)}.* \d+\.\d s", found.progress), found.progress


@pytest.mark.deep
def test_peak_memory_of_quantising_a_large_vocabulary(tmp_path: Path) -> None:
    """The float model and the quantised one run one after the other, and their rows of logits are in a file."""
    shape = LlamaShape(layers=4, hidden=1024, heads=16, kv_heads=4, ffn=2816, vocab=131072)
    found = compiled(tmp_path, shape, "float32", None, "--quantise", "int4")
    assert found.source_bytes > 1.2e9
    assert found.peak_bytes < 2.0 * found.source_bytes
    assert found.packed_bytes < 0.3 * found.source_bytes


def as_arrays(path: Path) -> dict[str, np.ndarray]:
    decoder = canonicalise(path, 64)
    return {name: value.const_value.numpy() for name, value in decoder.model.graph.initializers.items()}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int4"])
def test_one_file_many_files_and_none_are_the_same_model(tmp_path: Path, dtype: str) -> None:
    shape = LlamaShape(layers=1, hidden=64, heads=2, kv_heads=1, ffn=96, vocab=160, context=64)
    for name, file_bytes in (("one", None), ("many", 2000)):
        (tmp_path / name).mkdir()
        write_llama(tmp_path / name / "model.onnx", shape, dtype, file_bytes=file_bytes)
    (tmp_path / "inside").mkdir()
    onnx.save(onnx.load(tmp_path / "one" / "model.onnx"), tmp_path / "inside" / "model.onnx")
    for name, files in (("one", range(2, 3)), ("many", range(5, 40)), ("inside", range(1, 2))):
        assert len(list((tmp_path / name).iterdir())) in files
    one = as_arrays(tmp_path / "one" / "model.onnx")
    for name in ("many", "inside"):
        other = as_arrays(tmp_path / name / "model.onnx")
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[k], other[k]) for k in one)
    write_llama(tmp_path / "many" / "model.onnx", shape, dtype, seed=1, file_bytes=2000)
    other = as_arrays(tmp_path / "many" / "model.onnx")
    assert not all(np.array_equal(one[k], other[k]) for k in one)  # the negative control
