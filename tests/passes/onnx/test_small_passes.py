"""Before and Expected of the passes that rewrite one thing each."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from passes.onnx.pass_context import run_pass
from passes.onnx.prove.check_vocabulary import check_vocabulary
from passes.onnx.rewrite.canonical_matmuls import canonical_matmuls
from passes.onnx.rewrite.exact_quantised import exact_quantised
from passes.onnx.rewrite.fold_constants import fold_constants
from passes.onnx.rewrite.normalise_io_names import normalise_io_names
from passes.onnx.rewrite.resolve_shapes import resolve_shapes
from passes.onnx.rewrite.split_packed import split_packed
from passes.onnx.rewrite.upcast_to_float32 import upcast_to_float32
from passes.onnx.testing import importing, lines
from targets.errors import UserError

IDS = "int64[b,s] input_ids"
CACHE = "float[b,2,p,4] past_key_values.0.key, float[b,2,p,4] past_key_values.0.value"
TABLE = "float[4,8] e = {" + ",".join(["1"] * 32) + "}"


# normalise_io_names


def named(inputs: str, outputs: str) -> tuple[list[str], list[str]]:
    imp = importing(f"g ({inputs}) => ({outputs}) {{ }}")
    run_pass(normalise_io_names, imp)
    return [v.name for v in imp.graph.inputs], [v.name for v in imp.graph.outputs]


def cache(names: list[str]) -> str:
    return ", ".join(f"float[b,2,p,4] {n}" for n in names)


CANONICAL = (
    [
        "input_ids",
        "past_key_values.0.key",
        "past_key_values.0.value",
        "past_key_values.1.key",
        "past_key_values.1.value",
    ],
    ["logits", "present.0.key", "present.0.value", "present.1.key", "present.1.value"],
)


@pytest.mark.parametrize(
    ("past", "present"),
    [
        ("past_key_values.{i}.{key}", "present.{i}.{key}"),
        ("past_key_values_{i}_{key}", "present_key_values_{i}_{key}"),
        ("past_{key}_{i}", "present_{key}_{i}"),
        ("past.{i}.{key}", "present.{i}.{key}"),
        ("past_{i}_{key}", "present_{i}_{key}"),
        ("past_key_values.{i}.decoder.{key}", "present_key_values.{i}.decoder.{key}"),
        ("{key}_cache.{i}", "{key}_cache_out.{i}"),
    ],
)
def test_names_and_order(past: str, present: str) -> None:
    order = [(1, "value"), (0, "key"), (0, "value"), (1, "key")]  # any order comes out the same
    ins = cache([past.format(i=i, key=k) for i, k in order])
    outs = cache([present.format(i=i, key=k) for i, k in order])
    assert named(f"{ins}, {IDS}", f"{outs}, float[b,s,9] logits") == CANONICAL


def test_hidden_states_are_dropped() -> None:
    outs = "float[b,s,8] hidden, float[b,s,9] logits, " + cache(["present.0.key", "present.0.value"])
    assert named(f"{IDS}, {CACHE}", outs)[1] == ["logits", "present.0.key", "present.0.value"]


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        (f"{IDS}, {CACHE}", "float[b,s,9] logits", "gives back another number"),
        (f"{CACHE}", "float[b,s,9] logits", "no input_ids"),
        (f"{IDS}, {CACHE}", cache(["present.0.key", "present.0.value"]), "no output named logits"),
        (f"{IDS}, {CACHE}, bool use_cache_branch", "float[b,s,9] logits", "'use_cache_branch'"),
        (f"{IDS}, {CACHE}, int64[b,1,s,t] attention_mask", "float[b,s,9] logits", "attention_mask"),
        (f"{IDS}, float[b,2,p,4] past_key_values.0.key, float[b,2,p,4] past_key_values.1.key",
         "float[b,s,9] logits", "not a key and a value per layer"),
        (f"int64[b,7] input_ids, {CACHE}", "float[b,s,9] logits, " + cache(["present.0.key", "present.0.value"]),
         "fixed length 7"),
    ],
)  # fmt: skip
def test_inputs_nobody_can_fill_are_refused(inputs: str, outputs: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        named(inputs, outputs)


# upcast_to_float32


def test_weights_stay_half_behind_a_cast_and_vectors_are_converted() -> None:
    imp = importing(
        "g (float16[b,s,2] x) => (float16[b,s,2] y) <float16[2,2] w = {1,2,3,4}, float16[2] v = {1,2}> {"
        " m = MatMul(x, w) a = Add(m, v) c = Cast <to = 10> (a) y = Mul(c, c) }"
    )
    run_pass(upcast_to_float32, imp)
    assert lines(imp.graph) == [
        "w.float32 = Cast(w) {to: 1}",
        "m = MatMul(x, w.float32)",
        "a = Add(m, v)",
        "c = Cast(a) {to: 1}",
        "y = Mul(c, c)",
    ]
    graph = imp.graph
    assert graph.initializers["w"].const_value.dtype == ir.DataType.FLOAT16
    assert graph.initializers["v"].const_value.dtype == ir.DataType.FLOAT
    assert graph.inputs[0].dtype == graph.outputs[0].dtype == ir.DataType.FLOAT


def test_float32_and_integers_are_left_alone() -> None:
    imp = importing("g (float[b,2] x, int64[b] i) => (float[b,2] y) <float[2,2] w = {1,2,3,4}> { y = MatMul(x, w) }")
    before = lines(imp.graph)
    assert run_pass(upcast_to_float32, imp).matched == 0
    assert lines(imp.graph) == before


# fold_constants


def test_small_constants_are_computed_and_idle_nodes_go() -> None:
    imp = importing(
        f"g ({IDS}, float[b,2] x) => (float[b,2] y) <float[1] c = {{4}}> {{"
        " r = Sqrt(c) i = Identity(x) k = Cast <to = 1> (i) j = Concat <axis = 0> (k) y = Mul(j, r) }",
        head_dim=None,
    )
    imp.graph.inputs[1].type = ir.TensorType(ir.DataType.FLOAT)
    run_pass(fold_constants, imp)
    kinds = [n.op_type for n in imp.graph]
    assert "Sqrt" not in kinds
    assert "Identity" not in kinds
    assert imp.graph.initializers["r.folded"].const_value.numpy().tolist() == [2.0]


@pytest.mark.parametrize(
    ("start", "end", "step", "idle"),
    [(0, 1 << 62, 1, True), (1, 1 << 62, 1, False), (0, 5, 1, False), (0, 1 << 62, 2, False)],
)
def test_a_slice_of_everything_goes(start: int, end: int, step: int, idle: bool) -> None:
    numbers = f"int64[1] from = {{{start}}}, int64[1] to = {{{end}}}, int64[1] axis = {{1}}, int64[1] step = {{{step}}}"
    imp = importing(
        f"g (float[b,s,8] x) => (float[b,t,8] y) <{numbers}> {{ z = Slice (x, from, to, axis, step) y = Neg (z) }}"
    )
    run_pass(fold_constants, imp)
    assert (lines(imp.graph) == ["y = Neg(x)"]) is idle


def test_weights_are_never_folded() -> None:
    ones = ",".join(["1"] * 1600)
    imp = importing(f"g (float[b,40] x) => (float[b,40] y) <float[40,40] w = {{{ones}}}> {{ t = Transpose(w) y = MatMul(x, t) }}", head_dim=0)  # noqa: E501  # fmt: skip
    before = lines(imp.graph)
    run_pass(fold_constants, imp)
    assert lines(imp.graph) == before


# resolve_shapes


def test_shapes_of_activations_come_from_the_inputs() -> None:
    imp = importing(
        f"g ({IDS}, {CACHE}) => (int64[n] y2, int64[n] z) <{TABLE}> {{"
        " x = Gather(e, input_ids) y = Shape(x) y2 = Neg(y) "
        "j = Concat <axis = 2> (past_key_values.0.key, past_key_values.0.key)"
        " z = Shape <start = 1, end = 2> (past_key_values.0.key) }"
    )
    run_pass(resolve_shapes, imp)
    text = lines(imp.graph)
    assert any("Concat(dimension.batch, dimension.new, [8])" in line for line in text)
    assert "z = Shape(past_key_values.0.key) {end: 2, start: 1}" in text  # of an input: left alone


# split_packed

SLICES = (
    "q = Slice(x, z, four, last) k = Slice(x, four, six, last) v = Slice(x, six, end, last) "
    "a = Neg(q) b = Neg(k) c = Neg(v)"
)
SLICED = (
    f"g ({IDS}) => (float[b,s,4] a, float[b,s,2] b, float[b,s,2] c) <{TABLE}, int64[1] z = {{0}}, "
    "int64[1] four = {4}, int64[1] six = {6}, int64[1] end = {9223372036854775807}, int64[1] last = {-1}> "
    "{ x = Gather(e, input_ids) "
)


def test_slices_of_a_packed_projection_become_a_split() -> None:
    imp = importing(SLICED + SLICES + "}")
    run_pass(split_packed, imp)
    assert lines(imp.graph)[1] == "q.part, k.part, v.part = Split(x, [4, 2, 2]) {axis: -1}"
    assert lines(imp.graph)[2:] == ["a = Neg(q.part)", "b = Neg(k.part)", "c = Neg(v.part)"]


@pytest.mark.parametrize("change", [("k = Slice(x, four, six", "k = Slice(x, z, six"), ("last) v", "z) v")])
def test_slices_that_do_not_cover_the_axis_once_are_left_alone(change: tuple[str, str]) -> None:
    imp = importing(SLICED + SLICES.replace(*change) + "}")
    before = lines(imp.graph)
    assert run_pass(split_packed, imp).matched == 0
    assert lines(imp.graph) == before


def test_an_equal_split_gets_its_sizes() -> None:
    imp = importing(f"g ({IDS}) => (float[b,s,4] a, float[b,s,4] b) <{TABLE}> {{ x = Gather(e, input_ids) a, b = Split <axis = -1, num_outputs = 2> (x) }}")  # noqa: E501  # fmt: skip
    run_pass(split_packed, imp)
    assert lines(imp.graph)[1] == "a, b = Split(x, [4, 4]) {axis: -1}"


UNSQUEEZED = (
    f"g ({IDS}) => (float[b,1,s,6] a, float[b,1,s,2] b) <{TABLE}, int64[1] one = {{1}}, int64[2] sizes = {{6, 2}}> {{ "
    "x = Gather(e, input_ids) y = Unsqueeze(x, one) q, k = Split <axis = 3> (y, sizes) a = Neg(q) b = Neg(k) }"
)


def test_a_split_of_rows_with_an_axis_before_them_is_one_of_rows() -> None:
    imp = importing(UNSQUEEZED)
    run_pass(split_packed, imp)
    assert lines(imp.graph) == [
        "x = Gather(e, input_ids)",
        "q, k = Split(x, [6, 2]) {axis: -1}",
        "q.unsqueezed = Unsqueeze(q, [1])",
        "k.unsqueezed = Unsqueeze(k, [1])",
        "a = Neg(q.unsqueezed)",
        "b = Neg(k.unsqueezed)",
    ]


@pytest.mark.parametrize("change", [("one = {1}", "one = {2}"), ("<axis = 3>", "<axis = 2>")])
def test_a_split_with_another_axis_before_it_is_left_alone(change: tuple[str, str]) -> None:
    imp = importing(UNSQUEEZED.replace(*change))
    before = lines(imp.graph)
    assert run_pass(split_packed, imp).matched == 0
    assert lines(imp.graph) == before


# canonical_matmuls


def test_gemm_and_swish_and_idle_reshape() -> None:
    w = "float[8,8] w = {" + ",".join(["1"] * 64) + "}, float[8] v = {1,1,1,1,1,1,1,1}, int64[3] same = {0,0,8}"
    imp = importing(
        f"g ({IDS}) => (float[b,s,8] y) <{TABLE}, {w}> {{ x = Gather(e, input_ids) r = Reshape(x, same)"
        " m = Gemm <transB = 1> (r, w, v) y = com.microsoft.QuickGelu <alpha = 1.0> (m) }"
    )
    run_pass(canonical_matmuls, imp)
    assert lines(imp.graph) == [
        "x = Gather(e, input_ids)",
        "w.transposed = Transpose(w) {perm: [1, 0]}",
        "m.matmul = MatMul(x, w.transposed)",
        "m.biased = Add(m.matmul, v)",
        "y.sigmoid = Sigmoid(m.biased)",
        "y = Mul(m.biased, y.sigmoid)",
    ]


def test_flattened_rows_that_go_to_heads_at_once_do_so_by_way_of_rows() -> None:
    w = "float[8,8] w = {" + ",".join(["1"] * 64) + "}, float[8] v = {1,1,1,1,1,1,1,1}, int64[2] flat = {-1,8}"
    imp = importing(
        f"g ({IDS}) => (float[b,s,2,4] y) <{TABLE}, {w}, int64[2] tail = {{2,4}}, int64[1] none = {{0}}> {{"
        " x = Gather(e, input_ids) r = Reshape(x, flat) m = Gemm(r, w, v)"
        " size = Shape(input_ids) whole = Concat <axis = 0> (size, tail) z = Reshape(m, whole) y = Neg(z) }"
    )
    run_pass(canonical_matmuls, imp)
    assert [line for line in lines(imp.graph) if "size" not in line] == [
        "x = Gather(e, input_ids)",
        "m.matmul = MatMul(x, w)",
        "m.biased = Add(m.matmul, v)",
        "z.heads = Reshape(m.biased, [0, 0, 2, 4]) {allowzero: 0}",
        "y = Neg(z.heads)",
    ]


@pytest.mark.parametrize("operator", ["Gemm <alpha = 2.0> (x, w)", "Gemm <transA = 1> (x, w)"])
def test_gemm_with_factors_is_left_alone(operator: str) -> None:
    w = "float[8,8] w = {" + ",".join(["1"] * 64) + "}"
    imp = importing(f"g ({IDS}) => (float[b,s,8] y) <{TABLE}, {w}> {{ x = Gather(e, input_ids) y = {operator} }}")
    entry = run_pass(canonical_matmuls, imp)
    assert entry.matched == 0
    assert "not neutral" in entry.notes[0]


# exact_quantised


def test_accuracy_level_is_zero_after() -> None:
    imp = importing(
        "g (float[b,s,32] x) => (float[b,s,1] y) "
        "<uint8[1,1,16] q = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}, float[1] d = {1}>"
        " { y = com.microsoft.MatMulNBits <K = 32, N = 1, bits = 4, block_size = 32, accuracy_level = 4> (x, q, d) }"
    )
    assert run_pass(exact_quantised, imp).matched == 1
    assert imp.graph[0].attributes["accuracy_level"].value == 0
    assert run_pass(exact_quantised, imp).matched == 0


# check_vocabulary


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Elu(x)", r"ai.onnx.Elu \(node 'Elu of y'\): the operator is not part"),
        ("y = Mul(x, v2)", "multiplied by a weight matrix"),
        ("y = Add(x, c)", "only a bias vector"),
        ("y = Add(x, c1)", "only a bias vector"),  # whose kernel reads a number for each column
        ("y = MatMul(x, x)", "matrix multiplications of a computed value with a weight"),
        ("s = Sigmoid(x) y = Add(s, x)", "not the gate of SiLU"),
        ("s = Sigmoid(x) t = Tanh(x) y = Mul(s, t)", "not the gate of SiLU"),
        ("y = Mul(x, x)", r"Mul \(node 'Mul of y'\): two computed values are multiplied and neither is a gate"),
        ("s = Sigmoid(x) y = Mul(x, s)", r"Mul \(node 'Mul of y'\): a SiLU that is no gate"),
        ("s = Sigmoid(x) g = Mul(x, s) y = Add(x, g)", r"Mul \(node 'Mul of g'\): a SiLU that is no gate"),
        ("s = Sigmoid(x) g = Mul(x, s) u = Mul(g, x) y = Add(u, g)", r"Mul of g'\): a SiLU that is no gate"),
        ("s = Sigmoid(x) g = Mul(x, s) y = Mul(g, g)", r"Mul of g'\): a SiLU that is no gate"),
        ("s = Sigmoid(x) g = Mul(x, s) t = Sigmoid(g) h = Mul(g, t) y = Mul(h, x)", r"Mul of g'\): a SiLU that is no"),
        ("t = Transpose <perm = [0,2,1]> (x) u = Transpose <perm = [0,2,1]> (t) y = Add(u, x)", "not to a weight"),
        ("h = Reshape(x, r) y = Reshape(h, r3)", "only supported before a norm"),
        ("y = com.microsoft.BiasGelu(x, v)", "com.microsoft.BiasGelu"),
    ],
)
def test_what_is_outside_the_vocabulary_is_named(body: str, reason: str) -> None:
    ones = "{1,1,1,1,1,1,1,1}"
    numbers = f"float c = {{2}}, float[1] c1 = {{2}}, float[8] v = {ones}, float[1,8] v2 = {ones}"
    constants = f"{numbers}, int64[4] r = {{0,0,2,4}}, int64[3] r3 = {{0,0,8}}"
    imp = importing(f"g ({IDS}) => (float[b,s,8] y) <{TABLE}, {constants}> {{ x = Gather(e, input_ids) {body} }}")
    with pytest.raises(UserError, match=reason):
        run_pass(check_vocabulary, imp)


@pytest.mark.parametrize(
    "body",
    [
        "s = Sigmoid(x) g = Mul(s, x) t = Tanh(x) y = Mul(t, g)",
        "s = Sigmoid(x) g = Mul(x, s) t = Tanh(x) u = Mul(g, x) v = Mul(g, t) y = Add(u, v)",
        "g = Gelu(x) t = Tanh(x) y = Mul(t, g)",
        "g = Gelu(x) h = Gelu(g) y = Mul(g, h)",
        "g = Gelu(x) s = Sigmoid(x) h = Mul(s, x) y = Mul(g, h)",
        "g = Gelu(x) s = Sigmoid(g) h = Mul(s, g) y = Mul(h, x)",
    ],
)
def test_gates_that_have_a_kernel(body: str) -> None:
    run_pass(
        check_vocabulary, importing(f"g ({IDS}) => (float[b,s,8] y) <{TABLE}> {{ x = Gather(e, input_ids) {body} }}")
    )


def test_inside_the_vocabulary() -> None:
    constants = "float[8] v = {1,1,1,1,1,1,1,1}, float[8,8] w = {" + ",".join(["1"] * 64) + "}"
    imp = importing(
        f"g ({IDS}) => (float[b,s,8] y) <{TABLE}, {constants}> {{ x = Gather(e, input_ids)"
        " wt = Transpose <perm = [1,0]> (w) m = MatMul(x, wt) b = Add(m, v) s = Sigmoid(b) "
        "g = Mul(b, s) u = Mul(x, g) y = Add(u, x) }"
    )
    run_pass(check_vocabulary, imp)
    assert imp.graph.opset_imports == {"": 23}
    assert len(imp.graph) == 8
