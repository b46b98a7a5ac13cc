"""Before and Expected of unflatten_rows, and that the numbers stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.unflatten_rows import unflatten_rows
from passes.onnx.testing import importing, lines

NORM = "n = LayerNormalization <axis = -1> (f, w, c)"
FFN = f"f = Reshape(x, rows) {NORM} u = MatMul(n, m) r = Relu(u) v = Add(r, c) a = Add(f, v)"


def graph(body: str, back: str = "y = Reshape(a, like)") -> Any:
    values = [f"float[4] w = {{1, -2, 3, 4}}, float[4] c = {{1, 0, 5, 2}}, float[4,4] m = {{{','.join('2103' * 4)}}}"]
    values += ["float[3,4] e = {1, 2, -3, 5, 0, 7, 1, 1, 4, -4, 2, 9}", "int64[2] rows = {-1, 4}"]
    values += [f"int64[1] i{i} = {{{i}}}" for i in (0, 1, 2, 4)]
    values += ["int64[1] all = {-1}"]
    return importing(
        f"g (int64[b,s] input_ids) => (float[b,s,4] z) <{', '.join(values)}> "
        f"{{ x = Gather(e, input_ids) like = Shape(x) {body} {back} z = Add(y, x) }}"
    )


def run(imp: Any) -> np.ndarray:
    proto = ir.to_proto(imp.model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input_ids": np.array([[0, 1, 2], [2, 2, 0]])})[0])


def test_a_feed_forward_part_of_flattened_rows() -> None:
    imp = graph(FFN)
    before = run(imp)
    assert run_pass(unflatten_rows, imp).matched == 1
    shown = lines(imp.graph)
    assert not any("Reshape" in line for line in shown)
    assert "n = LayerNormalization(x, w, c) {axis: -1}" in shown
    assert "a = Add(x, v)" in shown
    assert np.array_equal(run(imp), before)
    norm = imp.graph.initializers["w"]
    norm.const_value = ir.tensor(norm.const_value.numpy() * np.float32(1.01), name="w")
    assert not np.array_equal(run(imp), before)  # the negative control


def test_flattened_rows_that_are_seen_by_head() -> None:
    """The view stays: it reads rows as they come."""
    heads = "b = Slice(like, i0, i2) h = Concat <axis = 0> (b, i2, i2) v4 = Reshape(a, h)"
    imp = graph(FFN, f"{heads} t = Transpose <perm = [0, 1, 3, 2]> (v4) y = Reshape(t, like)")
    before = run(imp)
    assert run_pass(unflatten_rows, imp).matched == 1
    assert "v4 = Reshape(a, h)" in lines(imp.graph)
    assert "u = MatMul(n, m)" in lines(imp.graph)
    assert not any("Reshape(x" in line for line in lines(imp.graph))
    assert np.array_equal(run(imp), before)


@pytest.mark.parametrize(
    ("body", "back"),
    [
        (FFN, "y0 = Reshape(a, like) k = ReduceSum <keepdims = 0> (u) y = Add(y0, k)"),  # read by something else
        (  # tokens before sequences
            FFN,
            "b = Slice(like, i0, i1) s = Slice(like, i1, i2) turned = Concat <axis = 0> (s, b, i4) "
            "t = Reshape(a, turned) y = Transpose <perm = [1, 0, 2]> (t)",
        ),
        (FFN.replace("axis = -1", "axis = 0"), "y = Reshape(a, like)"),  # a norm over rows
        (FFN.replace("Relu(u)", "Softmax <axis = 0> (u)"), "y = Reshape(a, like)"),
        ("f = Reshape(x, rows) a = ReduceMax <keepdims = 1> (f)", "y = Expand(a, like)"),  # never brought back
    ],
)
def test_what_is_no_chain_of_rows_is_left_alone(body: str, back: str) -> None:
    imp = graph(body, back)
    before = lines(imp.graph)
    assert run_pass(unflatten_rows, imp).matched == 0
    assert lines(imp.graph) == before
