"""Before and Expected of ungroup_packed, and that the numbers stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.ungroup_packed import ungroup_packed
from passes.onnx.testing import importing, lines

WEIGHT = "float[2,12] w = {" + ",".join(str(i) for i in range(24)) + "}"
TURNED = "float[12,2] w = {" + ",".join(str(i) for i in range(24)) + "}"
BIAS = "float[12] c = {" + ",".join(str(i * i) for i in range(12)) + "}"
SPLIT = "v = Reshape(y, shape) t = Transpose <perm = [0, 2, 1, 3]> (v) q, k, o = Split <axis = 3, num_outputs = 3> (t)"


def packed(body: str, weight: str = WEIGHT, head_dim: int = 2) -> Any:
    return importing(
        "g (int64[b,s] input_ids) => (float[b,2,s,2] z) "
        f"<float[3,2] e = {{1, 2, -3, 5, 0, 7}}, {weight}, {BIAS}, int64[4] shape = {{0, 0, 2, 6}},"
        f" int64[3] sizes = {{1, 2, 3}}, int64[2] turned = {{2, 12}}, float[1] one = {{3}}> "
        f"{{ x = Gather(e, input_ids) {body} qk = Sub(q, k) z = Sub(qk, o) }}",
        head_dim=head_dim,
    )


def run(imp: Any) -> np.ndarray:
    proto = ir.to_proto(imp.model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input_ids": np.array([[0, 1, 2]])})[0])


@pytest.mark.parametrize(
    ("body", "weight", "head_dim"),
    [
        (f"m = MatMul(x, w) y = Add(m, c) {SPLIT}", WEIGHT, 2),
        (f"y = MatMul(x, w) {SPLIT}", WEIGHT, 0),  # an export without a cache
        (f"u = Transpose <perm = [1, 0]> (w) m = MatMul(x, u) y = Add(c, m) {SPLIT}", TURNED, 2),
    ],
)
def test_heads_in_turn_have_the_same_numbers(body: str, weight: str, head_dim: int) -> None:
    imp = packed(body, weight, head_dim)
    before = run(imp)
    assert run_pass(ungroup_packed, imp).matched == 1
    shown = lines(imp.graph)
    assert "q.part, k.part, o.part = Split(y, [4, 4, 4]) {axis: -1}" in shown
    assert "q.part.heads = Reshape(q.part, [0, 0, 2, 2]) {allowzero: 0}" in shown
    assert np.array_equal(run(imp), before)
    changed = next(v for n, v in imp.graph.initializers.items() if n == "w.ungrouped")
    changed.const_value = ir.tensor(changed.const_value.numpy()[:, ::-1].copy(), name="w.ungrouped")
    assert not np.array_equal(run(imp), before)  # the negative control


def numbers(kind: str, name: str, shape: str, count: int, most: int) -> str:
    return f"{kind}[{shape}] {name} = {{" + ",".join(str(i * i % most) for i in range(count)) + "}"


# two query heads, then the key and the value that they share (Falcon); the key is spread to both
GROUPED = (
    "v = Reshape(y, shape) qs = Slice(v, i0, i2, i2) q = Transpose <perm = [0, 2, 1, 3]> (qs) "
    "ks = Slice(v, i2, i3, i2) kt = Transpose <perm = [0, 2, 1, 3]> (ks) k = Expand(kt, spread) "
    "os = Gather <axis = 2> (v, i3) o = Transpose <perm = [0, 2, 1, 3]> (os)"
)
CODES = "com.microsoft.MatMulNBits <K = 16, N = 16, bits = 4, block_size = 16>"


@pytest.mark.parametrize(
    ("matmul", "changed"),
    [("MatMul(x, w)", "w"), (f"{CODES} (x, codes, scales)", "scales"), (f"{CODES} (x, codes, scales, zeros)", "zeros")],
)
def test_a_shared_key_and_value_of_a_group_of_heads(matmul: str, changed: str) -> None:
    weights = [numbers("float", "w", "16, 16", 256, 11), numbers("uint8", "codes", "16, 1, 8", 128, 251)]
    weights += [numbers("float", "scales", "16", 16, 13), numbers("uint8", "zeros", "16", 16, 7)]
    sizes = [f"int64[1] i{i} = {{{i}}}" for i in (0, 2, 3)]
    sizes += ["int64[4] shape = {0, 0, 4, 4}", "int64[4] spread = {1, 2, 1, 1}"]
    sizes += [numbers("float", "e", "3, 16", 48, 7)]
    imp = importing(
        f"g (int64[b,s] input_ids) => (float[b,2,s,4] z) <{', '.join([*weights, *sizes])}> "
        f"{{ x = Gather(e, input_ids) y = {matmul} {GROUPED} qk = Sub(q, k) z = Sub(qk, o) }}"
    )
    before = run(imp)
    assert run_pass(ungroup_packed, imp).matched == 1
    shown = lines(imp.graph)
    assert "q.part, k.part, o.part = Split(y, [8, 8, 4]) {axis: -1}" in shown
    assert not any(text in line for line in shown for text in ("Slice", "Expand"))
    assert np.array_equal(run(imp), before)
    value = imp.graph.initializers[f"{changed}.ungrouped"]
    value.const_value = ir.tensor(value.const_value.numpy()[::-1].copy(), name=value.name)
    assert not np.array_equal(run(imp), before)  # the negative control


TURN = "Transpose <perm = [0, 2, 1, 3]>"
READ = (  # the query heads before they are turned, too
    "y = MatMul(x, w) v = Reshape(y, shape) q0, k0, o0 = Split <axis = 3, num_outputs = 3> (v) n = Neg(q0) "
    f"n1 = {TURN} (n) q1 = {TURN} (q0) q2 = Add(n1, n1) q = Add(q1, q2) k = {TURN} (k0) o = {TURN} (o0)"
)
AGAIN = f"u = Neg(x) y2 = MatMul(u, w) v2 = Reshape(y2, shape) t2 = {TURN} (v2) "
TWICE = f"y = MatMul(x, w) v = Reshape(y, shape) t = {TURN} (v) a, b, o = Split <axis = 3, num_outputs = 3> (t) {AGAIN}"
TWICE += "q2, k2, o2 = Split <axis = 3, num_outputs = 3> (t2) q = Sub(a, o2) kk = Sub(b, q2) k = Mul(kk, k2)"


@pytest.mark.parametrize(("body", "matched"), [(READ, 1), (TWICE, 2)])
def test_heads_read_on_the_way_and_a_weight_of_two_layers(body: str, matched: int) -> None:
    imp = packed(body)
    before = run(imp)
    assert run_pass(ungroup_packed, imp).matched == matched
    assert np.array_equal(run(imp), before)
    value = next(v for n, v in imp.graph.initializers.items() if n == "w.ungrouped")
    value.const_value = ir.tensor(value.const_value.numpy()[:, ::-1].copy(), name=value.name)
    assert not np.array_equal(run(imp), before)  # the negative control


@pytest.mark.parametrize(
    "body",
    [
        f"m = MatMul(x, w) y = Neg(m) {SPLIT}",  # not a projection of its own
        f"y = MatMul(x, w) {SPLIT.replace('[0, 2, 1, 3]', '[0, 2, 3, 1]').replace('axis = 3', 'axis = 2')}",
        f"y = MatMul(x, w) {SPLIT.replace(', num_outputs = 3> (t)', '> (t, sizes)')}",  # of unequal sizes
        f"u = Reshape(w, turned) y = MatMul(x, u) {SPLIT}",  # columns that are not those of what is stored
        f"m = MatMul(x, w) y = Add(m, one) {SPLIT}",  # one number for all columns
        f"y = MatMul(x, w) {SPLIT.replace('q, k, o =', f'n = Neg(v) tn = {TURN} (n) q, k, o0 =')} "
        "more, k0, o1 = Split <axis = 3, num_outputs = 3> (tn) o = Add(o0, more)",  # the view is read, too
    ],
)
def test_what_is_none_is_left_alone(body: str) -> None:
    imp = packed(body)
    before = lines(imp.graph)
    assert run_pass(ungroup_packed, imp).matched == 0
    assert lines(imp.graph) == before
