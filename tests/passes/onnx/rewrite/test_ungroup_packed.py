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


def packed(body: str, weight: str = WEIGHT) -> Any:
    return importing(
        "g (int64[b,s] input_ids) => (float[b,2,s,2] z) "
        f"<float[3,2] e = {{1, 2, -3, 5, 0, 7}}, {weight}, {BIAS}, int64[4] shape = {{0, 0, 2, 6}},"
        f" int64[3] sizes = {{1, 2, 3}}> {{ x = Gather(e, input_ids) {body} qk = Sub(q, k) z = Sub(qk, o) }}"
    )


def run(imp: Any) -> np.ndarray:
    proto = ir.to_proto(imp.model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input_ids": np.array([[0, 1, 2]])})[0])


@pytest.mark.parametrize(
    ("body", "weight"),
    [
        (f"m = MatMul(x, w) y = Add(m, c) {SPLIT}", WEIGHT),
        (f"y = MatMul(x, w) {SPLIT}", WEIGHT),
        (f"u = Transpose <perm = [1, 0]> (w) m = MatMul(x, u) y = Add(c, m) {SPLIT}", TURNED),
    ],
)
def test_heads_in_turn_have_the_same_numbers(body: str, weight: str) -> None:
    imp = packed(body, weight)
    before = run(imp)
    assert run_pass(ungroup_packed, imp).matched == 1
    shown = lines(imp.graph)
    assert "q.part, k.part, o.part = Split(y, [4, 4, 4]) {axis: -1}" in shown
    assert "q.part.heads = Reshape(q.part, [0, 0, 2, 2]) {allowzero: 0}" in shown
    assert np.array_equal(run(imp), before)
    changed = next(v for n, v in imp.graph.initializers.items() if n == "w.ungrouped")
    changed.const_value = ir.tensor(changed.const_value.numpy()[:, ::-1].copy(), name="w.ungrouped")
    assert not np.array_equal(run(imp), before)  # the negative control


@pytest.mark.parametrize(
    "body",
    [
        f"m = MatMul(x, w) y = Neg(m) {SPLIT}",  # not a projection of its own
        f"y = MatMul(x, w) {SPLIT.replace('[0, 2, 1, 3]', '[0, 2, 3, 1]').replace('axis = 3', 'axis = 2')}",
        f"y = MatMul(x, w) {SPLIT.replace(', num_outputs = 3> (t)', '> (t, sizes)')}",  # of unequal sizes
    ],
)
def test_what_is_none_is_left_alone(body: str) -> None:
    imp = packed(body)
    before = lines(imp.graph)
    assert run_pass(ungroup_packed, imp).matched == 0
    assert lines(imp.graph) == before
