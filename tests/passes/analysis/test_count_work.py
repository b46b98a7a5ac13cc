from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from tvm import relax

from costmodel.decoder import DecoderSpec
from costmodel.format import INT8, Format
from costmodel.operators import NORMS, TABLES, Operator
from costmodel.place import ATTENTION, FFN, HEAD, Part
from costmodel.work import step_ops, totals
from passes.analysis.count_traffic import count_traffic
from passes.analysis.count_work import count_work
from passes.lower.kernel_calls import kernel_uses
from passes.onnx import canonicalise
from passes.relax.dialect import op_name
from passes.relax.rebuild import bindings
from passes.testing import TinyDecoder
from targets.cpu import core
from targets.cpu.tile import cpu_tile
from tests.support.lowered import lower_whole

DATA = Path(__file__).parents[2] / "data"
EXPORTS = DATA / "exports"
# every family whose blocks differ: gates, packing, biases, norms, multipliers, learned positions, int8
FAMILIES = [
    *("opt-dynamo-fp32", "falcon-grouped-dynamo-fp32", "nemotron-dynamo-fp32", "bloom-dynamo-fp32"),
    "opt-350m-dynamo-fp32",
    *("gpt2-dynamo-fp32", "gemma2-dynamo-fp32", "gemma3-optimum-fp32", "phi3-dynamo-fp32", "qwen3-genai-int8"),
    *("granite-genai-int4", "olmo2-dynamo-fp32", "gemma3n-shared-dynamo-fp32"),
]


def sizes(shape: DecoderSpec, layer: int = 0) -> list[tuple[str, int, int]]:
    """Name, inputs and outputs of a layer's matrix multiplications."""
    return [
        (op.name, op.k, op.columns)
        for op in shape.operators
        if op.kind == "linear" and op.part.layer == layer and op.part.kind != HEAD
    ]


def test_sizes_by_hand() -> None:
    shape = count_work(TinyDecoder(layers=2, heads=4, kv_heads=2, head_dim=16, ffn=48, vocab=50).decoder(), "tiny")
    expected = [
        ("q", 64, 64),
        ("k", 64, 32),
        ("v", 64, 32),
        ("o", 64, 64),
        ("gate", 64, 48),
        ("up", 64, 48),
        ("down", 48, 64),
    ]
    assert sizes(shape, 0) == sizes(shape, 1) == expected
    assert (shape.head.k, shape.head.columns, shape.hidden, shape.ffn, shape.layers) == (64, 50, 64, 48, 2)
    per_layer = 64 * (64 + 32 + 32) + 64 * 64 + 3 * 64 * 48 + 2 * 64
    assert shape.parameters == 2 * per_layer + 64 + 2 * 50 * 64
    assert shape.weight_bytes_by_dtype == {"float32": 4 * shape.parameters}


def test_formats_biases_and_norms() -> None:
    shape = count_work(TinyDecoder(bits=4, qk_norm=True, qkv_bias=True).decoder(), "tiny")
    ops = {op.name: op for op in shape.part(Part(ATTENTION, 0))}
    assert ops["q"].format == Format("int4", 16, "float32", zeros=True)
    assert {"q_bias", "k_bias", "v_bias"} <= ops.keys()
    assert "o_bias" not in ops
    assert (ops["q_norm"].groups, ops["k_norm"].groups) == (ops["attention"].heads, ops["attention"].kv_heads)
    plain = count_work(TinyDecoder(dtype="float16", tied=True).decoder(), "tiny")
    assert plain.head.format == Format("float16")
    assert plain.tied
    assert "q_norm" not in {op.name for op in plain.operators}


def counted(name: str) -> Any:
    return count_work(canonicalise(DATA / "families" / name / "model.onnx", 64), name)


def test_gpt2_by_hand() -> None:
    """One plain product before the activation, biases everywhere, layer norms with a bias, a table of positions."""
    shape = counted("gpt2-dynamo-fp32")
    assert sizes(shape) == [("qkv", 32, 96), ("o", 32, 32), ("up", 32, 48), ("down", 48, 32)]
    names = {op.name: op.kind for op in shape.operators}
    assert [names[f"{n}_bias"] for n in ("qkv", "o", "up", "down")] == ["bias"] * 4
    assert (names["gelu"], names["attention_norm"], names["positions_add"]) == ("gelu", "layer_norm", "add")
    weights = 32 * 96 + 32 * 32 + 32 * 48 + 48 * 32
    per_layer = weights + (96 + 32 + 48 + 32) + 2 * 2 * 32
    tables = shape.vocab * (1 if shape.tied else 2) + 128
    assert shape.parameters == shape.layers * per_layer + 2 * 32 + tables * 32
    ops = {op.name: op for op in step_ops(shape, 3, 5)}
    linears = sum(op.flops for op in step_ops(shape, 3, 5) if op.kind == "linear")
    assert linears == 3 * 2 * (shape.layers * weights + 32 * shape.vocab)
    assert ops["attention"].flops == 4 * 32 * (6 + 7 + 8)
    assert ops["gelu"].read_bytes == 4 * 3 * 48  # one operand, not a gate and its partner
    assert ops["ffn_norm"].bytes_of("weights") == 4 * 2 * 32
    assert ops["positions"].bytes_of("weights") == 3 * 32 * 4
    assert not {"take_gate", "rope_q"} & ops.keys()


@pytest.mark.parametrize(("name", "kind", "flops"), [("opt", "relu", 48), ("nemotron", "squared_relu", 2 * 32)])
def test_relu_by_hand(name: str, kind: str, flops: int) -> None:
    shape = counted(f"{name}-dynamo-fp32")
    (found,) = (op for op in step_ops(shape, 3, 5) if op.kind == kind)
    assert (found.name, found.flops, found.read_bytes) == (kind, 3 * flops, 4 * 3 * shape.ffn)
    assert {op.name for op in shape.part(Part(FFN, 0)) if op.kind == "linear"} == {"up", "down"}
    table = next((op for op in shape.operators if op.kind == "positions"), None)
    assert (table is not None and table.k) == (128 if name == "opt" else False)  # without OPT's two unused rows


def test_norms_by_head_and_clips_by_hand() -> None:
    """Of StableLM's heads each has 8 scales and 8 shifts, Phi's share them; OLMo clips q, k and v."""
    ops = {
        name: {op.name: op for op in counted(f"{name}-dynamo-fp32").operators}
        for name in ("stablelm-heads", "phi-heads")
    }
    own, shared = (ops[name]["q_norm"] for name in ("stablelm-heads", "phi-heads"))
    assert (own.kind, own.groups, own.small_values) == ("layer_norm", 4, 2 * 32)
    assert (shared.kind, shared.groups, shared.small_values) == ("layer_norm", 4, 2 * 8)
    assert ops["stablelm-heads"]["k_norm"].small_values == 2 * 16
    clips = {op.name: op.flops for op in step_ops(counted("olmo-clipped-dynamo-fp32"), 3, 5) if op.kind == "clip"}
    assert clips == {"clip_q": 3 * 2 * 32, "clip_k": 3 * 2 * 16, "clip_v": 3 * 2 * 16}
    (curved,) = (op for op in step_ops(counted("apertus-dynamo-fp32"), 3, 5) if op.kind == "xielu")
    assert curved.read_bytes == curved.written_bytes == 4 * 3 * 32


def test_alibi_by_hand() -> None:
    """Two operations more for each score, and no kernel of its own; BLOOM normalises its embedding."""
    shape = counted("bloom-dynamo-fp32")
    ops = {op.name: op for op in step_ops(shape, 3, 5)}
    assert ops["attention"].flops == (4 * 32 + 2 * 4) * (6 + 7 + 8)
    assert [op.kind for op in shape.units[0]] == ["embedding", "layer_norm"]
    assert not {"positions", "rope_q"} & ops.keys()


def test_projections_by_hand() -> None:
    """opt-350m's embedding is narrower than its layers; a prompt chunk computes one row beyond the last attention."""
    shape = counted("opt-350m-dynamo-fp32")
    assert (shape.embedding.columns, shape.hidden, shape.head.k, shape.vocab) == (16, 32, 16, 64)
    linears = [op for op in step_ops(shape, 3, 5, result_rows=1) if op.kind == "linear"]
    found = {op.name: (op.rows, op.operator.k, op.operator.columns) for op in (linears[0], *linears[-2:])}
    assert found == {"project_in": (3, 16, 32), "project_out": (1, 32, 16), "head": (1, 16, 64)}


def test_gemma2_by_hand() -> None:
    """Scaled embedding, a norm before and after each block, GELU, capped scores and logits, a window in one layer."""
    shape = counted("gemma2-dynamo-fp32")
    local, full = shape.attentions
    assert (local.window, full.window, local.softcap) == (4, 0, True)
    ops = step_ops(shape, 3, 5)
    first = {op.name: op for op in reversed(ops)}
    assert first["embedding_scale"].flops == 3 * 32
    attentions = [op.flops for op in ops if op.kind == "attention"]
    assert attentions == [(4 * 32 + 20 * 4) * (4 + 4 + 4), (4 * 32 + 20 * 4) * (6 + 7 + 8)]
    assert first["gelu_mul"].read_bytes == 2 * 4 * 3 * 32
    assert [first[n].flops for n in ("cap_down", "cap", "cap_up")] == [3 * shape.vocab * each for each in (1, 20, 1)]
    assert sum(op.bytes_of("weights") for op in ops if op.kind in NORMS) == 4 * 32 * (2 * 4 + 1)


def test_gemma_3n_by_hand() -> None:
    """Three streams of 32, rows of 8 for each of four layers, gates of 32 and 48; two layers have no k and v."""
    shape = counted("gemma3n-shared-dynamo-fp32")
    assert (shape.hidden, shape.border, shape.ffn, shape.layers) == (32, 3 * 32 + 4 * 8, 48, 4)
    first = {op.name: op for op in reversed(step_ops(shape, 3, 5))}
    assert first["altup_predict"].flops == 3 * (2 * 3) * 96
    assert first["altup_predict"].read_bytes == 4 * 3 * (96 + 9)
    assert first["altup_correct"].flops == 3 * 3 * 96
    assert first["altup_correct"].read_bytes == 4 * 3 * (96 + 32 + 3)
    assert (first["altup_add"].flops, first["altup_add"].read_bytes) == (3 * 96, 4 * 3 * (96 + 32))
    assert first["gaussian_top_k"].flops == 3 * 6 * 32
    assert first["scale_columns"].bytes_of("weights") == 4 * 32
    assert first["embedding_by_layer"].bytes_of("weights") == 3 * 4 * 32
    parts = [{op.name for op in shape.part(Part(ATTENTION, i))} for i in range(4)]
    assert [{"k", "v"} <= names for names in parts] == [True, True, False, False]
    assert [op.window for op in shape.attentions] == [4, 0, 4, 0]
    assert shape.kv_bytes(10) == 10 * 4 * (2 * 2 * 8) * 4  # every layer has a cache, two of them copies


def test_phi3_by_hand() -> None:
    """q, k, v from one product and gate, up from another, each cut apart again."""
    shape = counted("phi3-dynamo-fp32")
    assert sizes(shape) == [("qkv", 32, 64), ("o", 32, 32), ("gate_up", 32, 64), ("down", 32, 32)]
    ops = {op.name: op for op in step_ops(shape, 3, 5)}
    assert [ops[f"take_{n}"].written_bytes for n in ("q", "k", "v")] == [4 * 3 * 32, 4 * 3 * 16, 4 * 3 * 16]
    assert [ops[f"take_{n}"].written_bytes for n in ("gate", "up")] == [4 * 3 * 32] * 2


# how a kernel is called in a lowered module -> the operator of the list, where the names differ
KERNELS = {"learned_positions": "positions", "take_columns": "take"}
N = 3


def called(mod: Any) -> Counter[tuple[Any, ...]]:
    """The kernels that an entry point calls: kind, sizes and format, each with the number of its calls."""
    found: Counter[tuple[Any, ...]] = Counter()
    for binding in bindings(mod[f"step_{N}"]):
        call = binding.value
        if op_name(call) not in ("relax.call_tir", "relax.call_tir_inplace"):
            continue
        name, args = str(call.args[0].name_hint), list(call.args[1].fields)
        bits = re.search(r"_([48])bit_", name)
        kind = re.sub(r"(_\d+(bit)?)+$", "", name)
        kind = KERNELS.get(kind, "bias" if kind == "add" and args[1].ty.ndim == 1 else kind)
        result = call.ty_args[0]
        out = result.fields[0] if isinstance(result, relax.TupleType) else result
        width = int(out.shape[-1])
        if kind.startswith("quantise_rows"):
            continue  # part of what each matrix multiplication that reads its codes is priced with
        if kind in ("linear", "linear_int"):
            dtype = f"int{bits[1]}" if bits else str(args[1].ty.dtype)
            codes = (INT8,) if kind == "linear_int" else ()
            found[("linear", int(args[0].ty.shape[-1]), width, dtype, *codes)] += 1
        elif kind in TABLES:
            found[kind, width, f"int{bits[1]}" if bits else str(args[0].ty.dtype)] += 1
        elif kind in ("rms_norm", "add_rms_norm"):
            found[kind, width, width // int(args[-1].ty.shape[0])] += 1
        elif kind == "attention":
            found[kind, width, int(args[4].ty.shape[1]), int(args[4].ty.shape[3])] += 1
        elif kind == "argmax":
            found[kind, int(args[0].ty.shape[-1])] += 1
        else:
            found[kind, width] += 1
    return found


def _codes(op: Operator) -> tuple[str, ...]:
    return (INT8,) if op.activations == INT8 else ()


def listed(shape: DecoderSpec) -> Counter[tuple[Any, ...]]:
    """The same of the operator list."""
    more = {
        "linear": lambda op: (op.k, op.columns, op.format.dtype.replace("bfloat16", "float32"), *_codes(op)),
        "embedding": lambda op: (op.columns, op.format.dtype.replace("bfloat16", "float32")),
        "positions": lambda op: (op.columns, op.format.dtype),
        "rms_norm": lambda op: (op.columns, op.groups),
        "add_rms_norm": lambda op: (op.columns, op.groups),
        "attention": lambda op: (op.columns, op.kv_heads, op.head_dim),
    }
    more["embedding_by_layer"] = more["embedding"]
    same = {"embedding_by_layer": "embedding"}  # the same kernel
    return Counter(
        (same.get(op.kind, op.kind), *more.get(op.kind, lambda op: (op.columns,))(op)) for op in shape.operators
    )


NAMES = [*sorted(p.parent.name for p in EXPORTS.glob("*/model.onnx")), *FAMILIES]
QUICK = {"llama-genai-int4", "granite-genai-int4"}


@pytest.mark.parametrize("export", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
@pytest.mark.slow
def test_the_list_is_what_the_lowering_calls(export: str) -> None:
    """Kind, sizes, format and number of every kernel; and every byte that the bundle maps, but for the rope tables."""
    folder = DATA / ("families" if export in FAMILIES else "exports") / export
    decoder = canonicalise(folder / "model.onnx", 64)
    shape = count_work(decoder, export)
    lowered = lower_whole(decoder, cpu_tile(core("cortex-a76")), 64, (1, N), 32)
    expected = listed(shape)
    assert called(lowered.mod) == expected
    assert called(lowered.mod) != expected - Counter([next(iter(expected))])  # one kernel less
    stored: dict[str, int] = {p.name: int(np.prod(p.shape)) * np.dtype(p.dtype).itemsize for p in lowered.packed}
    ropes = [node for node in decoder.model.graph if node.op_type == "RotaryEmbedding"]
    tables = {value.name for node in ropes for value in node.inputs[1:3]}
    if export.startswith("gemma3n"):  # matrices of few columns are padded to panels; a layer reads its router twice
        routers = [op for op in shape.operators if op.part.kind == FFN and op.name in ("router", "router_norm")]
        once = shape.parameters - sum(op.matrix_values + op.small_values for op in routers)
        assert sum(int(w.size) for name, w in lowered.weights.items() if name not in tables) == once
        return
    assert sum(stored.values()) - sum(stored[t] for t in tables) == shape.weight_bytes
    assert shape.vocab % 16 == 0  # otherwise panels would add columns


@pytest.mark.slow
@pytest.mark.parametrize("export", ["llama-genai-int4", "qwen3-genai-int8"])
def test_the_list_with_int8_activations_is_what_the_lowering_calls(export: str) -> None:
    folder = DATA / ("families" if export in FAMILIES else "exports") / export
    decoder = canonicalise(folder / "model.onnx", 64)
    exact = count_work(decoder, export)
    shape = exact.with_int8_activations()
    mod = lower_whole(decoder, cpu_tile(core("cortex-a76")), 64, (1, N), 32, activations=INT8).mod
    assert called(mod) == listed(shape)
    assert (exact.activations, shape.activations) == ("float", "int8")
    assert called(mod) != listed(exact)
    uses = {use.name: use.calls for use in kernel_uses(mod[f"step_{N}"])}
    made = sum(calls for name, calls in uses.items() if name.startswith("quantise_rows"))
    assert made == sum(op.makes_codes for op in shape.operators)
    assert 0 < made < sum(op.activations == INT8 for op in shape.operators)  # q, k and v share their codes


# what a feed-forward part computes from g and u, and the operators of it that have a kernel of their own
GATES = {
    "s = Sigmoid(g) h = Mul(s, g) y = Mul(u, h)": ["silu_mul"],
    "s = Sigmoid(g) h = Mul(g, s) a = Mul(h, u) b = Mul(h, g) y = Add(a, b)": ["silu_mul", "silu_mul", "add"],
    "h = Gelu(g) y = Mul(u, h)": ["gelu_mul"],
    "h = Gelu(g) a = Mul(h, u) y = Add(a, h)": ["gelu", "gelu_mul", "add"],
    "h = Gelu(g) y = Mul(h, h)": ["gelu", "gelu_mul"],
    "h = Gelu(g) k = Gelu(u) y = Mul(h, k)": ["gelu", "gelu_mul"],
    "k = Gelu(g) s = Sigmoid(u) h = Mul(s, u) y = Mul(k, h)": ["gelu", "silu_mul"],
    "k = Gelu(g) s = Sigmoid(k) h = Mul(s, k) y = Mul(h, u)": ["gelu", "silu_mul"],
}


@pytest.mark.parametrize("body", GATES)
@pytest.mark.slow
def test_the_gates_of_the_list_are_those_that_are_fused(body: str) -> None:
    tiny = TinyDecoder(layers=1)
    proto = tiny.proto()
    sigmoid, silu, gated = (n for n in proto.graph.node if n.op_type in ("Sigmoid", "Mul"))
    (up,) = {*gated.input} - {*silu.output}
    names = {"g": sigmoid.input[0], "u": up, "y": gated.output[0]}
    at = list(proto.graph.node).index(sigmoid)
    made = onnx.parser.parse_graph(f"f (float[n] g, float[n] u) => (float[n] y) {{ {body} }}").node
    for node in (sigmoid, silu, gated):
        proto.graph.node.remove(node)
    for i, node in enumerate(made):
        for places in (node.input, node.output):
            places[:] = [names.get(name, name) for name in places]
        proto.graph.node.insert(at + i, node)
    decoder = tiny.decoder(proto)
    shape = count_work(decoder, "tiny")
    kinds = [op.kind for op in shape.part(Part(FFN, 0)) if op.kind not in ("linear", "add_rms_norm", "rms_norm")]
    assert sorted(kinds) == sorted(GATES[body])
    assert called(lower_whole(decoder, cpu_tile(core("cortex-a76")), 64, (1, N), 32).mod) == listed(shape)


@pytest.mark.slow
@pytest.mark.parametrize("export", ["gemma2-dynamo-fp32", "qwen3-genai-int8", "gpt2-dynamo-fp32"])
def test_bytes_are_those_that_the_kernels_need(export: str) -> None:
    """Weights and activations of a step, counted here and in the loops of the kernels themselves."""
    decoder = canonicalise(DATA / "families" / export / "model.onnx", 64)
    past = 20
    ops = step_ops(count_work(decoder, export), N, past)
    mod = lower_whole(decoder, cpu_tile(core("cortex-a76")), 64, (1, N), 32).mod
    needed: Counter[str] = Counter()
    for use in kernel_uses(mod[f"step_{N}"]):
        if not use.name.startswith(("rope", "attention", "argmax")):
            needed["bytes"] += use.calls * count_traffic(mod[use.name], past, use.outputs, use.scratch).needed_bytes
    ids = sum(8 * N for op in ops if op.kind in TABLES)
    here = sum(op.read_bytes + op.written_bytes for op in ops if op.kind not in ("rope", "attention", "argmax")) + ids
    assert needed["bytes"] == pytest.approx(here, rel=0.02)


def test_one_step_reads_every_matrix_once() -> None:
    shape = count_work(TinyDecoder(dtype="float16", vocab=64).decoder(), "tiny")
    read: Any = totals(step_ops(shape, 1, 10)).read
    matrices = shape.weight_bytes_by_dtype["float16"] - 2 * 64 * 64  # the embedding is read row by row
    assert read[("weights", "float16")] == matrices + 2 * 64
