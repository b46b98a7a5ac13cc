"""Packs exports that once failed into tests/data/cases.tar.xz, small: weights on a coarse grid, tables cut.

Each folder of SOURCE has a model.onnx that a tool of another kind has written: quantisers of onnxruntime
(MatMulNBitsQuantizer, HQQ), its optimiser (level extended), the 4-bit builder of onnxruntime-genai, optimum. The graphs
stay as they are; their weights were random before. Run by hand:

    python tests/data/make_cases.py SOURCE
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx

CASES = ("g-gather-int4", "granite", "nb-gather", "nb-gpt2", "nb-hqq", "olive-tie-qwen2", "ortext-llama")
ROWS = 64  # that position and rope tables keep; the tests' texts are shorter
TABLES = ("transformer.wpe.weight", "cos_cache", "sin_cache")


def coarse(weight: np.ndarray) -> np.ndarray:
    """The numbers rounded to 7 bits of the largest one, which xz packs well."""
    step = 2.0 ** (np.ceil(np.log2(np.abs(weight).max())) - 6)
    return (np.round(weight / step) * step).astype(np.float32)


def small(path: Path) -> bytes:
    """A model with its weights inside, coarse, and its tables cut."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        numbers = onnx.numpy_helper.to_array(tensor)
        if tensor.data_type != onnx.TensorProto.FLOAT or numbers.ndim != 2:
            continue
        if tensor.name in TABLES:
            numbers = numbers[:ROWS]
        if "scales" not in tensor.name and "cache" not in tensor.name:
            numbers = coarse(numbers)
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(numbers), tensor.name))
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    del proto.graph.value_info[:]
    return proto.SerializeToString()


def main(source: Path) -> None:
    """Write the archive, the same bytes for the same source."""
    with tarfile.open(Path(__file__).parent / "cases.tar.xz", "w:xz", preset=9) as archive:
        for name in CASES:
            content = small(source / name / "model.onnx")
            entry = tarfile.TarInfo(f"{name}/model.onnx")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
            print(name, len(content), "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
