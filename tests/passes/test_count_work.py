from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodel.shape import Format
from costmodel.work import step_ops, totals
from passes.count_work import count_work
from passes.import_onnx import canonicalise
from passes.pipeline import lower_decoder_for_cpu
from passes.testing import TinyDecoder
from targets.cortex_a import core
from targets.cortex_a.tile import cpu_tile

EXPORTS = Path(__file__).parent.parent / "data" / "exports"


def test_sizes_by_hand() -> None:
    shape = count_work(TinyDecoder(layers=2, heads=4, kv_heads=2, head_dim=16, ffn=48, vocab=50).decoder(), "tiny")
    layer = shape.layers[0]
    assert [(p.name, p.k, p.columns) for p in layer.products] == [
        ("q", 64, 64),
        ("k", 64, 32),
        ("v", 64, 32),
        ("o", 64, 64),
        ("gate", 64, 48),
        ("up", 64, 48),
        ("down", 48, 64),
    ]
    assert shape.head.k == 64
    assert shape.head.columns == 50
    per_layer = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 48 + 2 * 64
    assert shape.parameters == 2 * per_layer + 64 + 2 * 50 * 64
    assert shape.weight_bytes_by_dtype == {"float32": 4 * shape.parameters}


def test_formats_biases_and_norms() -> None:
    shape = count_work(TinyDecoder(bits=4, qk_norm=True, qkv_bias=True).decoder(), "tiny")
    q = shape.layers[0].attention_in[0]
    assert q.format == Format("int4", 16, "float32", zeros=True)
    assert q.bias
    assert not shape.layers[0].out.bias
    assert shape.layers[0].qk_norm
    assert shape.layers[0].norms == 2
    plain = count_work(TinyDecoder(dtype="float16", tied=True).decoder(), "tiny")
    assert plain.head.format == Format("float16")
    assert plain.tied
    assert not plain.layers[0].qk_norm


@pytest.mark.parametrize("export", sorted(p.parent.name for p in EXPORTS.glob("*/model.onnx")))
def test_bytes_are_those_of_the_packed_weights(export: str) -> None:
    """Every byte that the bundle maps, but for the rope tables, is in the shape: read it off the packed tensors."""
    decoder = canonicalise(EXPORTS / export / "model.onnx", 64)
    shape = count_work(decoder, export)
    packed = lower_decoder_for_cpu(decoder, cpu_tile(core("cortex-a76")), 64, (1,), 32).packed
    sizes: dict[str, int] = {p.name: int(np.prod(p.shape)) * np.dtype(p.dtype).itemsize for p in packed}
    ropes = [node for node in decoder.model.graph if node.op_type == "RotaryEmbedding"]
    tables = {value.name for node in ropes for value in node.inputs[1:3]}
    assert sum(sizes.values()) - sum(sizes[t] for t in tables) == shape.weight_bytes
    assert shape.vocab % 16 == 0  # otherwise panels would add columns


def test_one_step_reads_every_matrix_once() -> None:
    shape = count_work(TinyDecoder(dtype="float16", vocab=64).decoder(), "tiny")
    read: Any = totals(step_ops(shape, 1, 10)).read
    matrices = shape.weight_bytes_by_dtype["float16"] - 2 * 64 * 64  # the embedding is read row by row
    assert read[("weights", "float16")] == matrices + 2 * 64
