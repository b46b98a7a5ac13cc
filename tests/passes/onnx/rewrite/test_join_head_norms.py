"""Layer norms of single heads joined, and what is left alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.join_head_norms import join_head_norms
from passes.onnx.testing import importing, lines

NORM = "LayerNormalization <epsilon = 0.00001, axis = -1>"
BODY = (
    "t = Transpose <perm = [0, 2, 1, 3]> (x) p, q = Split <axis = 1, num_outputs = 2> (t) "
    f"m = {NORM} (p, v, c) n = {NORM} (q, w, d) y = Concat <axis = 1> (m, n)"
)


def heads(body: str) -> Any:
    return importing(
        "g (float[b,s] i) => (float[b,2,s,4] z)<float[2,4] k = {1,-2,3,-4,5,-6,7,-8},"
        " int64[2] last = {2,3}, float[4] v = {1,2,3,4}, float[4] w = {5,6,7,8},"
        f" float[4] c = {{1,0,1,0}}, float[4] d = {{0,2,0,2}}, int64[2] ones = {{1,1}}> {{"
        f" u = Unsqueeze(i, last) x = Mul(u, k) {body} z = Neg(y) }}",
        opset=18,
    )


def run(imp: Any) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(imp.model).SerializeToString())
    return np.asarray(session.run(None, {"i": np.array([[1, -2, 3]], np.float32)})[0])


WITH_SIZES = BODY.replace("Split <axis = 1, num_outputs = 2> (t)", "Split <axis = 1> (t, ones)")


@pytest.mark.parametrize("body", [BODY, WITH_SIZES])
def test_the_norms_of_all_heads_become_one(body: str) -> None:
    imp = heads(body)
    before = run(imp)
    assert run_pass(join_head_norms, imp).matched == 1
    assert [node.op_type for node in imp.graph] == ["Unsqueeze", "Mul", "LayerNormalization", "Transpose", "Neg"]
    np.testing.assert_allclose(run(imp), before, atol=1e-6)
    scale = imp.graph[2].inputs[1]
    assert scale.const_value.numpy().tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    scale.const_value = ir.tensor(scale.const_value.numpy()[::-1].copy(), name=scale.name)
    assert np.abs(run(imp) - before).max() > 1  # the negative control: the heads' scales exchanged


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (BODY.replace("(m, n)", "(n, m)"), "in their order"),
        (BODY.replace("0.00001, axis = -1> (q", "0.1, axis = -1> (q"), "differ in more than their weights"),
        (BODY.replace("perm = [0, 2, 1, 3]", "perm = [0, 2, 3, 1]"), "side by side"),
        (BODY.replace("Concat <axis = 1>", "Concat <axis = 2>"), "not on axis 1"),
    ],
)
def test_others_stay_with_the_reason(body: str, reason: str) -> None:
    imp = heads(body)
    before = lines(imp.graph)
    log = run_pass(join_head_norms, imp)
    assert log.matched == 0
    (note,) = log.notes
    assert re.search(reason, note)
    assert lines(imp.graph) == before
