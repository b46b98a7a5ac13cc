"""Before and Expected of the passes other families need: activations, position tables, dequantised weights, caches."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.add_cache import LONGEST, add_cache
from passes.onnx.rewrite.canonical_matmuls import canonical_matmuls
from passes.onnx.rewrite.fuse_activations import fuse_activations
from passes.onnx.rewrite.learned_positions import learned_positions
from passes.onnx.rewrite.lower_dequantize import lower_dequantize
from passes.onnx.rewrite.unfuse_onnxruntime import unfuse_onnxruntime
from passes.onnx.testing import importing, lines
from targets.errors import UserError

IDS = "int64[b,s] input_ids"
TABLE = "float[4,8] e = {" + ",".join(str(1 + i // 8) for i in range(32)) + "}"


# fuse_activations

HALF = "float half = {0.5}, float one = {1}, float three = {3}"
TANH = (
    "p = Pow(x, three) q = Mul(p, c) r = Add(x, q) t = Mul(r, k) u = Tanh(t) v = Add(u, one) w = Mul(x, half) "
    "y = Mul(w, v)"
)
ERF = "d = Div(x, k) u = Erf(d) v = Add(u, one) w = Mul(x, v) y = Mul(w, half)"


def activation(body: str, c: float = 0.044715, k: float = 0.7978845608, more: str = "") -> Any:
    constants = f"<{TABLE}, {HALF}, float c = {{{c}}}, float k = {{{k}}}{more}>"
    graph = f"g ({IDS}) => (float[b,s,8] z) {constants} {{ x = Gather(e, input_ids) {body} z = MatMul(y, m) }}"
    ones = ",".join(["1"] * 64)
    return importing(graph.replace(HALF, f"{HALF}, float[8,8] m = {{{ones}}}"))


@pytest.mark.parametrize(
    ("body", "k", "approximate"),
    [
        (TANH, 0.7978845608, "tanh"),
        (
            TANH.replace("Pow(x, three)", "Mul(x, x) p2 = Mul(p, x)").replace("Mul(p, c)", "Mul(p2, c)"),
            0.79788456,
            "tanh",
        ),
        (ERF, 2**0.5, "none"),
        ("y = com.microsoft.FastGelu(x)", 1.0, "tanh"),
        ("y = com.microsoft.Gelu(x)", 1.0, "none"),
    ],
)
def test_gelu_is_recognised_by_what_it_computes(body: str, k: float, approximate: str) -> None:
    imp = activation(body, k=k)
    assert run_pass(fuse_activations, imp).matched == 1
    assert lines(imp.graph)[1:] == [f"y.gelu = Gelu(x) {{approximate: {approximate}}}", "z = MatMul(y.gelu, m)"]


@pytest.mark.parametrize(
    ("c", "k", "why"),
    [
        (0.05, 0.7978845608, "neither a GELU nor a soft cap"),
        (0.0447, 0.7978845608, "neither a GELU nor a soft cap"),  # no 16-bit number near the constant
    ],
)
def test_another_formula_is_left_alone(c: float, k: float, why: str) -> None:
    imp = activation(TANH, c=c, k=k)
    before = lines(imp.graph)
    entry = run_pass(fuse_activations, imp)
    assert entry.matched == 0
    assert why in entry.notes[0]
    assert lines(imp.graph) == before


@pytest.mark.parametrize(
    ("c", "k"),
    [(0.044708251953125, 0.7978515625), (0.044715, 0.7978515625), (0.044677734375, 0.796875)],
    ids=["both in float16", "one in float16", "both in bfloat16"],
)
def test_rounded_constants_are_kept(c: float, k: float) -> None:
    """The function that is left has the numbers of the export; ONNX's operator would be off by several bounds."""
    imp = activation(TANH, c=c, k=k)
    assert run_pass(fuse_activations, imp).matched == 1
    assert lines(imp.graph)[1] == f"y.gelu = hetero_sd.Gelu(x) {{cubic: {c:.6g}, slope: {k:.6g}}}"
    numbers = np.linspace(-8, 8, 41).astype(np.float32)
    node = imp.graph[1]
    values = np.array([float(a.value) for _, a in sorted(node.attributes.items())])
    assert np.allclose(values, [c, k], rtol=1e-7)
    body = ir.Model(
        ir.Graph([v := ir.Value(name="v", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([41]))],
                 [(made := ir.node("Gelu", [v], dict(node.attributes), domain="hetero_sd")).outputs[0]],
                 nodes=[made], opset_imports={"": 23, "hetero_sd": 1}, name="g"),
        ir_version=10, functions=list(imp.model.functions.values()),
    )  # fmt: skip
    made.outputs[0].name, made.outputs[0].type = "w", ir.TensorType(ir.DataType.FLOAT)
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(ir.to_proto(body).SerializeToString(), options)
    (actual,) = session.run(None, {"v": numbers})
    expected = 0.5 * numbers * (1 + np.tanh(k * (numbers + c * numbers.astype(np.float64) ** 3)))
    exact = 0.5 * numbers * (1 + np.tanh(0.7978845608 * (numbers + 0.044715 * numbers.astype(np.float64) ** 3)))
    assert np.abs(actual - expected).max() < 4e-6
    assert np.abs(actual - exact).max() > 4e-6


@pytest.mark.parametrize("k", [1.4140625, 1 / 0.70703125])
def test_rounded_constants_of_erf_are_kept(k: float) -> None:
    imp = activation(ERF, k=k)
    assert run_pass(fuse_activations, imp).matched == 1
    shown = lines(imp.graph)
    assert shown[2] == "y.gelu.exact = Gelu(y.gelu.scaled) {approximate: none}"
    inside, outside = (float(imp.graph.initializers[f"y.gelu.{part}"].const_value.numpy()) for part in ("in", "out"))
    assert inside == pytest.approx(2**0.5 / k, rel=1e-7)
    assert inside * outside == pytest.approx(1, rel=1e-7)


@pytest.mark.parametrize("body", [TANH, ERF])
def test_a_gelu_whose_half_was_moved_away_is_doubled(body: str) -> None:
    """Into the factor of onnxruntime's FusedMatMul, which multiplies by it after the weights."""
    k = 0.7978845608 if body is TANH else 2**0.5
    left_out = body.replace("w = Mul(x, half) y = Mul(w, v)", "y = Mul(x, v)").replace(
        "w = Mul(x, v) y = Mul(w, half)", "y = Mul(x, v)"
    )
    imp = activation(left_out, k=k)
    assert run_pass(fuse_activations, imp).matched == 1
    kind = "tanh" if body is TANH else "none"
    times = ["y.times = Mul(y.gelu, y.factor)", "z = MatMul(y.times, m)"]
    assert lines(imp.graph)[1:] == [f"y.gelu = Gelu(x) {{approximate: {kind}}}", *times]
    assert imp.graph.initializers["y.factor"].const_value.numpy() == 2


def test_skipped_norms_one_after_the_other_are_all_taken_apart() -> None:
    """The second adds what the first made, as where a block's norms come after it."""
    norm = "com.microsoft.SkipLayerNormalization <epsilon = 0.00001>"
    body = f"a = {norm}(x, x, w, w) b = Neg(a) y = {norm}(b, a, w, w)"
    imp = activation(body, more=", float[8] w = {1,1,1,1,1,1,1,1}")
    entry = run_pass(unfuse_onnxruntime, imp)
    assert (entry.matched, entry.notes) == (2, ())
    assert [n.op_type for n in imp.graph] == [
        *("Gather", "Add", "LayerNormalization", "Neg", "Add", "LayerNormalization", "MatMul"),
    ]


def test_soft_cap() -> None:
    imp = activation("d = Div(x, k) u = Tanh(d) y = Mul(u, k)", k=30.0)
    assert run_pass(fuse_activations, imp).matched == 1
    assert [n.op_type for n in imp.graph] == ["Gather", "Mul", "Tanh", "Mul", "MatMul"]
    factors = [n.inputs[1].const_value.numpy().item() for n in imp.graph if n.op_type == "Mul"]
    assert factors == pytest.approx([1 / 30, 30.0], rel=1e-5)


def test_a_result_used_in_the_middle_is_left_alone() -> None:
    imp = activation(TANH.replace("y = Mul(w, v)", "o = MatMul(v, m) s = Mul(w, v) y = Add(s, o)"))
    assert run_pass(fuse_activations, imp).matched == 0


@pytest.mark.parametrize("square", ["Pow(r, two)", "Mul(r, r)"])
def test_the_square_of_a_relu(square: str) -> None:
    imp = activation(f"r = Relu(x) y = {square}", more=", float two = {2}")
    assert run_pass(fuse_activations, imp).matched == 1
    assert lines(imp.graph)[1:] == ["r.squared = hetero_sd.SquaredRelu(x)", "z = MatMul(r.squared, m)"]
    x = np.array([-np.inf, -2, 0, 3], np.float32)
    x_, y_ = (ir.Value(name=n, shape=ir.Shape([4]), type=ir.TensorType(ir.DataType.FLOAT)) for n in "xy")
    node = ir.Node("hetero_sd", "SquaredRelu", [x_], outputs=[y_])
    graph = ir.Graph([x_], [y_], nodes=[node], opset_imports={"": 23, "hetero_sd": 1}, name="g")
    model = ir.Model(graph, ir_version=10, functions=list(imp.model.functions.values()))
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    assert list(session.run(None, {"x": x})[0]) == [0, 0, 0, 9]


@pytest.mark.parametrize("body", ["r = Relu(x) y = Pow(r, three)", "r = Relu(x) p = Mul(r, r) y = Add(p, r)"])
def test_a_relu_that_is_not_squared_stays(body: str) -> None:
    imp = activation(body)
    assert run_pass(fuse_activations, imp).matched == 0
    assert "r = Relu(x)" in lines(imp.graph)


# learned_positions


def position_table(indices: str, inputs: str = "", context: int = 4) -> Any:
    graph = (
        f"g ({IDS}{inputs}, float[b,2,p,4] past_key_values.0.key) => (float[b,s,8] y) <{TABLE}, int64 zero = {{0}}, "
        f"int64 one = {{1}}, int64[1] axis = {{0}}, int64[1] unit = {{1}}> {{ {indices} y = Gather(e, i) }}"
    )
    return importing(graph, context=context)


COUNTED = (
    "p = Shape <start = 2, end = 3> (past_key_values.0.key) n = Shape <start = 1, end = 2> (input_ids) t = Add(p, n) "
    "ps = Squeeze(p, axis) ts = Squeeze(t, axis) r = Range(ps, ts, one) i = Unsqueeze(r, axis)"
)


def test_positions_given_or_counted() -> None:
    given = position_table("i = Identity(position_ids)", ", int64[b,s] position_ids")
    assert run_pass(learned_positions, given).matched == 1
    assert lines(given.graph) == ["y = Gather(e, position_ids)"]
    counted = position_table(COUNTED)
    assert run_pass(learned_positions, counted).matched == 1
    assert lines(counted.graph)[-1] == "y = Gather(e, positions)"


@pytest.mark.parametrize(
    ("indices", "inputs", "expected"),
    [
        ("i = Add(position_ids, one)", ", int64[b,s] position_ids", "position_ids"),
        # OPT's own: masked tokens have the row before the first
        (
            "c = CumSum(attention_mask, one) m = Mul(c, attention_mask) n = Sub(m, one) o = Add(n, one) "
            "p = Shape <start = 2, end = 3> (past_key_values.0.key) far = Shape <start = 1, end = 2> (attention_mask) "
            "i = Slice(o, p, far, unit)",
            ", int64[b,t] attention_mask",
            "positions",
        ),
    ],
)
def test_positions_that_start_at_another_row(indices: str, inputs: str, expected: str) -> None:
    imp = position_table(indices, inputs, context=3)
    assert run_pass(learned_positions, imp).matched == 1
    assert lines(imp.graph)[-1] == f"y = Gather(e.from1, {expected})"
    assert list(imp.graph.initializers["e.from1"].const_value.numpy()[:, 0]) == [2, 3, 4]
    with pytest.raises(UserError, match="has 3 learned positions, the context is 4; compile with --context 3 or less"):
        run_pass(learned_positions, position_table(indices, inputs))


def test_other_rows_are_left_alone() -> None:
    shifted = position_table("i = Add(position_ids, position_ids)", ", int64[b,s] position_ids")
    entry = run_pass(learned_positions, shifted)
    assert entry.matched == 0
    assert "not chosen by position" in entry.notes[0]


def test_fewer_rows_than_the_context_are_refused() -> None:
    with pytest.raises(UserError, match="has 4 learned positions, the context is 5; compile with --context 4 or less"):
        run_pass(learned_positions, position_table(COUNTED, context=5))


# lower_dequantize


def quantised(kind: str, transposed: bool, zeros: bool, block: int) -> tuple[Any, np.ndarray]:
    """A product with a dequantised weight of random numbers, and the weight [K, N] it stands for."""
    rng, k, n = np.random.default_rng(0), 48, 6
    low, high = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}[kind]
    dtype = ir.DataType[kind.upper()]
    blocks = -(-k // block) if block else 1
    q, z = rng.integers(low, high, (k, n)), rng.integers(low, high, (blocks, n))
    scale = rng.uniform(0.01, 0.1, (blocks, n)).astype(np.float32)
    spread = np.repeat(np.arange(blocks), block or k)[:k]
    weight = (q - (z[spread] if zeros else 0)).astype(np.float32) * scale[spread]
    imp = importing("g (float[b,s,48] x) => (float[b,s,6] y) { y = Identity(x) }", opset=21)
    graph = imp.graph

    def initializer(name: str, numbers: np.ndarray, kind: Any) -> Any:
        numbers = numbers.T if transposed else numbers
        numbers = numbers if block else numbers.reshape(numbers.shape if numbers.shape == (k, n) else -1)
        if not block and numbers.size == k * n:
            numbers = numbers.reshape((n, k) if transposed else (k, n))
        tensor = ir.tensor(np.ascontiguousarray(numbers).astype(kind.numpy()), dtype=kind, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(kind))
        graph.register_initializer(value)
        return value

    inputs = [initializer("q", q, dtype), initializer("scale", scale, ir.DataType.FLOAT)]
    inputs += [initializer("zero", z, dtype)] if zeros else []
    along = (1 if transposed else 0) if block else (0 if transposed else 1)
    node = ir.node("DequantizeLinear", inputs, {"axis": along, **({"block_size": block} if block else {})}, name="dq")
    last = next(iter(graph))
    graph.insert_before(last, node)
    weight_value = node.outputs[0]
    weight_value.name = "w"
    if transposed:
        turned = ir.node("Transpose", [weight_value], {"perm": [1, 0]})
        graph.insert_before(last, turned)
        weight_value = turned.outputs[0]
    product = ir.node("MatMul", [graph.inputs[0], weight_value], name="product")
    product.outputs[0].name = "made"
    graph.insert_before(last, product)
    last.replace_input_with(0, product.outputs[0])
    return imp, weight


@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("block", [16, 32, 0])
def test_dequantised_weights_become_blocks(kind: str, transposed: bool, zeros: bool, block: int) -> None:
    imp, weight = quantised(kind, transposed, zeros, block)
    entry = run_pass(lower_dequantize, imp)
    assert (entry.matched, entry.notes) == (1, ())
    assert [n.op_type for n in imp.graph] == ["MatMulNBits", "Identity"]
    proto = ir.to_proto(imp.model)
    for tensor, value in zip(proto.graph.initializer, imp.graph.initializers.values(), strict=True):
        tensor.CopyFrom(ir.to_proto(ir.tensor(value.const_value.numpy(), name=value.name)))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((1, 3, 48)).astype(np.float32)
    (y,) = session.run(None, {"x": x})
    np.testing.assert_allclose(y, x @ weight, atol=1e-3)
    weight[5, 2] += 0.05  # the negative control
    assert np.abs(y - x @ weight).max() > 1e-3


def test_quantised_activations_are_left_alone() -> None:
    imp = importing(
        "g (uint8[b,s,48] x) => (float[b,s,48] y) <float scale = {0.5}> { y = DequantizeLinear(x, scale) }", opset=21
    )
    entry = run_pass(lower_dequantize, imp)
    assert entry.matched == 0
    assert "quantised activations are not supported" in entry.notes[0]


# canonical_matmuls


def test_rows_flattened_for_a_gemm_stay_rows() -> None:
    w = "float[8,8] w = {" + ",".join(["1"] * 64) + "}, float[8] v = {1,1,1,1,1,1,1,1}, int64[2] flat = {-1,8}"
    imp = importing(
        f"g ({IDS}) => (float[b,s,8] z) <{TABLE}, {w}, int64[1] eight = {{8}}> {{ x = Gather(e, input_ids)"
        " r = Reshape(x, flat) m = Gemm(r, w, v) h = Shape(input_ids) t = Concat <axis = 0> (h, eight)"
        " y = Reshape(m, t) z = Neg(y) }"
    )
    run_pass(canonical_matmuls, imp)
    assert [n.op_type for n in imp.graph] == ["Gather", "MatMul", "Add", "Neg"]


# add_cache

PLAIN = (
    "g (int64[b,s] input_ids, float[b,2,s,4] q, float[b,2,s,4] k, float[b,2,s,4] v) => (float[b,2,s,4] y) {"
    " t = Transpose <perm = [0,1,3,2]> (k) p = MatMul(q, t) w = Softmax(p) y = MatMul(w, v) }"
)


def test_graphs_with_a_cache_are_left_alone() -> None:
    imp = importing(PLAIN)
    before = lines(imp.graph)
    assert run_pass(add_cache, imp).matched == 0
    assert lines(imp.graph) == before


def test_contexts_too_long_to_prove_are_declined() -> None:
    imp = importing(PLAIN, context=LONGEST + 1, no_cache=True)
    entry = run_pass(add_cache, imp)
    assert entry.matched == 0
    assert f"--context {LONGEST} or less" in entry.notes[0]
