"""Tensors in files: the numbers that onnx_ir reads, one map for all of a file, and memory that is given back."""

from __future__ import annotations

import gc
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from passes.onnx.load.load import load
from passes.onnx.load.mapped_tensor import MappedFile, MappedTensor

EXPORTS = Path(__file__).parents[3] / "data" / "exports"
TYPES = [ir.DataType.FLOAT, ir.DataType.BFLOAT16, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT2]


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: str(t.name))
@pytest.mark.parametrize("shape", [(3, 7), (5,), (0, 4), ()])
def test_the_numbers_that_onnx_ir_reads(tmp_path: Path, dtype: ir.DataType, shape: tuple[int, ...]) -> None:
    data = np.random.default_rng(0).integers(0, 255, 200, np.uint8)
    (tmp_path / "data").write_bytes(data.tobytes())
    size = -(-int(np.prod(shape)) * dtype.bitwidth // 8)
    theirs = ir.ExternalTensor("data", 8, size, dtype, shape=ir.Shape(shape), name="w", base_dir=tmp_path)
    ours = MappedTensor(MappedFile(tmp_path / "data"), theirs)
    assert ours.numpy().dtype == theirs.numpy().dtype
    assert ours.numpy().shape == shape
    assert ours.numpy().tobytes() == theirs.numpy().tobytes()
    if size:
        assert ours.tobytes() == theirs.tobytes() == data[8 : 8 + size].tobytes()
        moved = ir.ExternalTensor("data", 9, size, dtype, shape=ir.Shape(shape), name="w", base_dir=tmp_path)
        assert moved.numpy().tobytes() != ours.numpy().tobytes()
        ours.release()
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()


def test_a_model_needs_one_descriptor_for_a_file_and_may_be_linked_twice(tmp_path: Path) -> None:
    for file in (EXPORTS / "llama-genai-fp32").glob("model.onnx*"):
        shutil.copy(file, tmp_path)
    os.link(tmp_path / "model.onnx.data", tmp_path / "backup")  # onnx_ir reads no file that has two names
    before = len(os.listdir("/proc/self/fd"))
    model = load(tmp_path / "model.onnx")
    tensors = [v.const_value for v in model.graph.initializers.values()]
    numbers = [t.numpy() for t in tensors if isinstance(t, ir.ExternalTensor)]
    assert len(numbers) > 10
    assert len(os.listdir("/proc/self/fd")) == before + 1


def test_memory_is_given_back(tmp_path: Path) -> None:
    size = 32 << 20
    (tmp_path / "data").write_bytes(os.urandom(size))

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    file = MappedFile(tmp_path / "data")
    before = resident_bytes()
    numbers = file.part(100, size - 200).view(np.uint32)[1:]
    assert numbers.max() > 0
    assert resident_bytes() - before > size // 2
    highest = numbers.max()
    file.give_back(100, size - 200)  # while an array reads it
    assert resident_bytes() - before < size // 2
    assert numbers.max() == highest
    assert resident_bytes() - before > size // 2
    del numbers
    gc.collect()
    assert resident_bytes() - before < size // 2
