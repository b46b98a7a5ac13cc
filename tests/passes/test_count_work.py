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

DATA = Path(__file__).parent.parent / "data"
EXPORTS = DATA / "exports"
# every family whose blocks differ: gates, packing, biases, norms, learned positions, int8 and bfloat16
FAMILIES = ["gpt2-dynamo-fp32", "gemma2-dynamo-fp32", "gemma3-optimum-fp32", "phi3-dynamo-fp32", "qwen3-genai-int8"]


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


def counted(name: str) -> Any:
    return count_work(canonicalise(DATA / "families" / name / "model.onnx", 64), name)


def test_gpt2_by_hand() -> None:
    """One plain product before the activation, biases everywhere, layer norms with a bias, a table of positions."""
    shape = counted("gpt2-dynamo-fp32")
    layer, vocab, layers = shape.layers[0], shape.vocab, len(shape.layers)
    assert [(p.name, p.k, p.columns, p.bias) for p in layer.products] == [
        ("qkv", 32, 96, True),
        ("o", 32, 32, True),
        ("up", 32, 48, True),
        ("down", 48, 32, True),
    ]
    assert (layer.activation, layer.gated, layer.packed_ffn, layer.rope) == ("gelu", False, False, False)
    weights = 32 * 96 + 32 * 32 + 32 * 48 + 48 * 32
    per_layer = weights + (96 + 32 + 48 + 32) + 2 * 2 * 32
    tables = vocab * (1 if shape.tied else 2) + 128
    assert shape.parameters == layers * per_layer + 2 * 32 + tables * 32
    ops = {op.name: op for op in step_ops(shape, 3, 5)}
    assert sum(op.flops for op in ops.values() if op.kind == "linear") == 3 * 2 * (layers * weights + 32 * vocab)
    assert ops["layers.0.attention"].flops == 4 * 32 * (6 + 7 + 8)
    assert ops["layers.0.gelu"].read_bytes == 4 * 3 * 48  # one operand, not a gate and its partner
    assert ops["layers.0.ffn_norm"].bytes_of("weights") == 4 * 2 * 32
    assert ops["positions"].bytes_of("weights") == 3 * 32 * 4
    assert "layers.0.take_gate" not in ops
    assert "layers.0.rope_q" not in ops


def test_gemma2_by_hand() -> None:
    """Scaled embedding, a norm before and after each block, GELU, capped scores and logits, a window in one layer."""
    shape = counted("gemma2-dynamo-fp32")
    (local, full), vocab = shape.layers, shape.vocab
    assert (local.window, full.window, local.norms, local.softcap, local.activation) == (4, 0, 4, True, "gelu")
    ops = {op.name: op for op in step_ops(shape, 3, 5)}
    assert ops["embedding_scale"].flops == 3 * 32
    assert ops["layers.0.attention"].flops == (4 * 32 + 20 * 4) * (4 + 4 + 4)
    assert ops["layers.1.attention"].flops == (4 * 32 + 20 * 4) * (6 + 7 + 8)
    assert ops["layers.0.gelu_mul"].read_bytes == 2 * 4 * 3 * 32
    assert ops["head_softcap"].flops == 20 * 3 * vocab
    norms = [op for op in ops.values() if op.kind == "norm"]
    assert sum(op.bytes_of("weights") for op in norms) == 4 * 32 * (2 * 4 + 1)


def test_phi3_by_hand() -> None:
    """q, k, v from one product and gate, up from another, each cut apart again."""
    shape = counted("phi3-dynamo-fp32")
    layer = shape.layers[0]
    assert [(p.name, p.k, p.columns) for p in layer.products] == [
        ("qkv", 32, 64),
        ("o", 32, 32),
        ("gate_up", 32, 64),
        ("down", 32, 32),
    ]
    assert (layer.gated, layer.packed_ffn, layer.activation, layer.rope) == (True, True, "silu", True)
    ops = {op.name: op for op in step_ops(shape, 3, 5)}
    assert [ops[f"layers.0.take_{n}"].written_bytes for n in ("q", "k", "v")] == [4 * 3 * 32, 4 * 3 * 16, 4 * 3 * 16]
    assert [ops[f"layers.0.take_{n}"].written_bytes for n in ("gate", "up")] == [4 * 3 * 32] * 2


NAMES = [*sorted(p.parent.name for p in EXPORTS.glob("*/model.onnx")), *FAMILIES]
QUICK = {"llama-dynamo-fp16", "llama-genai-int4", "qwen2-genai-fp32", "gemma2-dynamo-fp32", "qwen3-genai-int8"}


@pytest.mark.parametrize("export", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_bytes_are_those_of_the_packed_weights(export: str) -> None:
    """Every byte that the bundle maps, but for the rope tables, is in the shape: read it off the packed tensors."""
    folder = DATA / ("families" if export in FAMILIES else "exports") / export
    decoder = canonicalise(folder / "model.onnx", 64)
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
