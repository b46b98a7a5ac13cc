"""Before and Expected of fuse_rms_norm and norm_by_head."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.fuse_rms_norm import fuse_rms_norm
from passes.onnx.rewrite.norm_by_head import norm_by_head
from passes.onnx.shapes import points
from passes.onnx.testing import importing, lines

FUSED = ["y.norm = RMSNormalization(x, w) {axis: -1, epsilon: 1e-05}", "z = Neg(y.norm)"]

NORMS = {
    "decomposed": "g (float[b,s,2] x) => (float[b,s,2] z) <float[2] w = {1,1}, float e = {0.00001}, "
    "int64[1] last = {-1}> { q = Mul(x, x) m = ReduceMean(q, last) a = Add(m, e) r = Sqrt(a) n = Div(x, r) "
    "y = Mul(n, w) z = Neg(y) }",
    "simplified": "g (float[b,s,2] x) => (float[b,s,2] z) <float[2] w = {1,1}> {"
    " y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.00001> (x, w) z = Neg(y) }",
    "skip": "g (float[b,s,2] x, float[b,s,2] h) => (float[b,s,2] z) <float[2] w = {1,1}> {"
    " y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.00001> (x, h, w) z = Neg(y) }",
}


def decomposed(body: str, weight: str = "float[8] w", constants: str = "") -> list[str]:
    imp = importing(
        "g (float[b,s,8] x) => (float[b,s,8] z)"
        f"<{weight} = {{1,1,1,1,1,1,1,1}}, float e = {{0.00001}}, float two = {{2}}, float one = {{1}}, "
        "float half = {-0.5}, int64[1] last = {-1}, int64[1] first = {1}"
        f"{constants}> {{ {body} z = Neg(y) }}"
    )
    run_pass(fuse_rms_norm, imp)
    return lines(imp.graph)


@pytest.mark.parametrize(
    "body",
    [
        # dynamo: Pow, Reciprocal
        "q = Pow(x, two) m = ReduceMean(q, last) a = Add(m, e) r = Sqrt(a) i = Reciprocal(r) "
        "n = Mul(x, i) y = Mul(w, n)",
        # torchscript: Div(1, .)
        "q = Pow(x, two) m = ReduceMean(q, last) a = Add(m, e) r = Sqrt(a) i = Div(one, r) n = Mul(x, i) y = Mul(n, w)",
        # hand-written: Mul(x, x), x / sqrt
        "q = Mul(x, x) m = ReduceMean(q, last) a = Add(e, m) r = Sqrt(a) n = Div(x, r) y = Mul(n, w)",
        # Pow(-0.5)
        "q = Mul(x, x) m = ReduceMean(q, last) a = Add(m, e) i = Pow(a, half) n = Mul(i, x) y = Mul(n, w)",
    ],
)
def test_every_spelling_is_fused(body: str) -> None:
    assert decomposed(body) == FUSED


@pytest.mark.parametrize("after", ["y = Mul(x, i)", "n = Mul(x, i) y = Mul(n, n)", "n = Mul(x, i) y = Mul(n, one)"])
def test_a_norm_without_a_weight_has_ones(after: str) -> None:
    """Whatever is done with its result: a factor, or the result twice, is no weight."""
    body = f"q = Pow(x, two) m = ReduceMean(q, last) a = Add(m, e) r = Sqrt(a) i = Reciprocal(r) {after}"
    imp = importing(
        "g (int64[b,s] input_ids) => (float[b,s,8] z)"
        f"<float[2,8] t = {{{','.join('1' * 16)}}}, float e = {{0.00001}}, float two = {{2}}, float one = {{1}}, "
        f"int64[1] last = {{-1}}> {{ x = Gather(t, input_ids) {body} z = Neg(y) }}"
    )
    assert run_pass(fuse_rms_norm, imp).matched == 1
    _, norm, *rest = lines(imp.graph)
    made, _, inputs = norm.partition(" = RMSNormalization")
    ones = f"{made.removesuffix('.norm')}.ones"
    assert inputs == f"(x, {ones}) {{axis: -1, epsilon: 1e-05}}"
    assert imp.graph.initializers[ones].const_value.numpy().tolist() == [1.0] * 8
    assert rest[-1] == f"z = Neg({made if after.startswith('y') else 'y'})"
    assert len(rest) == (1 if after.startswith("y") else 2)


def test_a_norm_without_a_weight_over_the_tokens_is_left_alone() -> None:
    """How many ones there would be depends on the text."""
    body = "q = Mul(x, x) m = ReduceMean(q, last) a = Add(m, e) r = Sqrt(a) n = Div(x, r) z = Neg(n)"
    table = "float e = {0.00001}, int64[1] last = {-1}"
    before = f"g (float[b,s] attention_mask) => (float[b,1,s] z) <{table}, int64[1] one = {{1}}> {{ "
    imp = importing(f"{before} x = Unsqueeze(attention_mask, one) {body} }}")
    entry = run_pass(fuse_rms_norm, imp)
    assert entry.matched == 0
    assert "its width is not fixed" in entry.notes[0]


@pytest.mark.parametrize(
    "body",
    [
        # a mean over another axis
        "q = Pow(x, two) m = ReduceMean(q, first) a = Add(m, e) r = Sqrt(a) i = Reciprocal(r) "
        "n = Mul(x, i) y = Mul(w, n)",
        # no squares
        "m = ReduceMean(x, last) a = Add(m, e) r = Sqrt(a) i = Reciprocal(r) n = Mul(x, i) y = Mul(w, n)",
        # a cube
        "q = Pow(x, one) m = ReduceMean(q, last) a = Add(m, e) r = Sqrt(a) i = Reciprocal(r) "
        "n = Mul(x, i) y = Mul(w, n)",
        # what is scaled is not what was squared
        "k = Neg(x) q = Pow(k, two) m = ReduceMean(q, last) a = Add(m, e) r = Sqrt(a) i = Reciprocal(r) n = Mul(x, i) "
        "y = Mul(w, n)",
        # no root
        "q = Pow(x, two) m = ReduceMean(q, last) a = Add(m, e) i = Reciprocal(a) n = Mul(x, i) y = Mul(w, n)",
        # the wrong way round: sqrt / x
        "q = Pow(x, two) m = ReduceMean(q, last) a = Add(m, e) r = Sqrt(a) n = Div(r, x) y = Mul(w, n)",
    ],
)
def test_what_is_no_norm_is_left_alone_with_a_reason(body: str) -> None:
    before = importing(
        "g (float[b,s,8] x) => (float[b,s,8] z)"
        "<float[8] w = {1,1,1,1,1,1,1,1}, float e = {0.00001}, float two = {2}, float one = {1}, float half = {-0.5}, "
        f"int64[1] last = {{-1}}, int64[1] first = {{1}}> {{ {body} z = Neg(y) }}"
    )
    unchanged = lines(before.graph)
    entry = run_pass(fuse_rms_norm, before)
    assert lines(before.graph) == unchanged
    assert entry.matched == 0
    assert len(entry.notes) == 1


def test_epsilon_is_read_not_assumed() -> None:
    imp = importing(
        "g (float[b,s,2] x) => (float[b,s,2] z) <float[2] w = {1,1}, float e = {0.5}, int64[1] last = {-1}> {"
        " q = Mul(x, x) m = ReduceMean(q, last) a = Add(m, e) r = Sqrt(a) n = Div(x, r) y = Mul(n, w) z = Neg(y) }"
    )
    run_pass(fuse_rms_norm, imp)
    assert imp.graph[0].attributes["epsilon"].value == 0.5


@pytest.mark.parametrize("epsilon", [0.0, -1e-5, -1.0, 1e-31, float("nan"), float("inf")])
@pytest.mark.parametrize("form", ["decomposed", "simplified", "skip"])
def test_a_norm_whose_epsilon_is_out_of_range_is_left_alone(form: str, epsilon: float) -> None:
    """At an epsilon of 0 a row of zeros is NaN, below it any small row may be."""
    imp = importing(NORMS[form])
    if form == "decomposed":
        imp.graph.initializers["e"].const_value = ir.tensor(np.array(epsilon, np.float32), name="e")
    else:
        imp.graph[0].attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon)
    unchanged = lines(imp.graph)
    entry = run_pass(fuse_rms_norm, imp)
    assert lines(imp.graph) == unchanged
    assert entry.matched == 0
    assert f"its epsilon is {np.float32(epsilon):g}; it may be 1e-30 to " in entry.notes[0]


@pytest.mark.parametrize("form", ["decomposed", "simplified", "skip"])
def test_the_same_norm_with_a_small_epsilon_is_fused(form: str) -> None:
    assert run_pass(fuse_rms_norm, importing(NORMS[form])).matched == 1


def test_axes_as_attribute() -> None:
    imp = importing(
        "g (float[b,s,2] x) => (float[b,s,2] z) <float[2] w = {1,1}, float e = {0.00001}> {"
        " q = Mul(x, x) m = ReduceMean <axes = [-1]> (q) a = Add(m, e) r = Sqrt(a) n = Div(x, r) y = Mul(n, w) "
        "z = Neg(y) }",
        opset=17,
    )
    run_pass(fuse_rms_norm, imp)
    assert lines(imp.graph) == FUSED


def test_simplified_layer_normalization() -> None:
    imp = importing(
        "g (float[b,s,2] x) => (float[b,s,2] z) <float[2] w = {1,1}> {"
        " y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.00001> (x, w) z = Neg(y) }"
    )
    run_pass(fuse_rms_norm, imp)
    assert lines(imp.graph) == FUSED


def test_skip_norm_writes_the_residual_out() -> None:
    imp = importing(
        "g (float[b,s,2] x, float[b,s,2] h) => (float[b,s,2] z, float[b,s,2] u) <float[2] w = {1,1}> {"
        " y, m, v, t = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.00001> (x, h, w)"
        " z = Neg(y) u = Neg(t) }"
    )
    run_pass(fuse_rms_norm, imp)
    assert lines(imp.graph) == [
        "y.sum = Add(x, h)",
        "y.norm = RMSNormalization(y.sum, w) {axis: -1, epsilon: 1e-05}",
        "z = Neg(y.norm)",
        "u = Neg(y.sum)",
    ]


def test_skip_norm_whose_variance_is_used_is_left_alone() -> None:
    imp = importing(
        "g (float[b,s,2] x, float[b,s,2] h) => (float[b,s,2] z, float u) <float[2] w = {1,1}> {"
        " y, m, v, t = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.00001> (x, h, w)"
        " z = Neg(y) u = Neg(v) }"
    )
    assert run_pass(fuse_rms_norm, imp).matched == 0


def by_head(body: str, more: str = "") -> list[str]:
    table = ",".join(["1"] * 160)
    imp = importing(
        "g (int64[b,s] input_ids) => (float[b,s,8] y)"
        f"<float[20,8] e = {{{table}}}, float[4] w = {{1,1,1,1}}{more}> {{ {body} }}",
        opset=23,
    )
    run_pass(norm_by_head, imp)
    return lines(imp.graph)


def test_heads_folded_into_the_sequence_are_taken_apart() -> None:
    before = (
        "x = Gather(e, input_ids) r = Reshape(x, fold) n = RMSNormalization <axis = -1> (r, w) y = Reshape(n, back)"
    )
    assert by_head(before, ", int64[3] fold = {0,-1,4}, int64[3] back = {0,-1,8}") == [
        "x = Gather(e, input_ids)",
        "r.heads = Reshape(x, [0, 0, 2, 4]) {allowzero: 0}",
        "n = RMSNormalization(r.heads, w) {axis: -1}",
        "y = Reshape(n, [0, 0, 8])",
    ]


_SEVEN = (
    "g (int64[b,s] input_ids) => (float[b,s,28] y)"
    f"<float[2,28] e = {{{','.join('1' * 56)}}}, float[4] w = {{1,1,1,1}}, int64[4] heads = {{0,0,7,4}}, "
    "int64[3] back = {0,0,28}> { x = Gather(e, input_ids) r = Reshape(x, heads)"
    " n = RMSNormalization <axis = -1> (r, w) y = Reshape(n, back) }"
)


def test_a_norm_of_heads_before_positions_gets_transposes() -> None:
    """What lies between, here Neg, is no transpose: HunYuan rotates there."""
    before = (
        "x = Gather(e, input_ids) r = Reshape(x, heads) t = Transpose <perm = [0,2,1,3]> (r) h = Neg(t)"
        " n = RMSNormalization <axis = -1> (h, w) u = Transpose <perm = [0,2,1,3]> (n) y = Reshape(u, back)"
    )
    assert by_head(before, ", int64[4] heads = {0,0,2,4}, int64[3] back = {0,0,8}")[3:7] == [
        "h = Neg(t)",
        "h.by_head = Transpose(h) {perm: [0, 2, 1, 3]}",
        "n.untransposed = RMSNormalization(h.by_head, w) {axis: -1}",
        "n.transposed = Transpose(n.untransposed) {perm: [0, 2, 1, 3]}",
    ]


def test_as_many_heads_as_new_tokens_at_a_point_are_still_heads() -> None:
    heads = points(importing(_SEVEN))[0].new
    assert heads == 7
    imp = importing(_SEVEN, opset=23)
    before = lines(imp.graph)
    run_pass(norm_by_head, imp)
    assert lines(imp.graph) == before


def test_transpose_moves_below_the_norm() -> None:
    before = (
        "x = Gather(e, input_ids) r = Reshape(x, heads) t = Transpose <perm = [0,2,1,3]> (r)"
        " n = RMSNormalization <axis = -1> (t, w) u = Transpose <perm = [0,2,1,3]> (n) y = Reshape(u, back)"
    )
    assert by_head(before, ", int64[4] heads = {0,0,2,4}, int64[3] back = {0,0,8}") == [
        "x = Gather(e, input_ids)",
        "r = Reshape(x, [0, 0, 2, 4])",
        "n.untransposed = RMSNormalization(r, w) {axis: -1}",
        "n.transposed = Transpose(n.untransposed) {perm: [0, 2, 1, 3]}",
        "u = Transpose(n.transposed) {perm: [0, 2, 1, 3]}",
        "y = Reshape(u, [0, 0, 8])",
    ]


def test_a_norm_of_whole_rows_is_left_alone() -> None:
    ones = ",".join(["1"] * 8)
    imp = importing(
        f"g (int64[b,s] input_ids) => (float[b,s,8] y) <float[2,8] e = {{{ones},{ones}}}, float[8] w = {{{ones}}}>"
        "{ x = Gather(e, input_ids) y = RMSNormalization <axis = -1> (x, w) }",
        opset=23,
    )  # fmt: skip
    before = lines(imp.graph)
    assert run_pass(norm_by_head, imp).matched == 0
    assert lines(imp.graph) == before
    assert np.all(imp.graph.initializers["w"].const_value.numpy() == 1)
