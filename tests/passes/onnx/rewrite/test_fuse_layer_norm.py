"""Before and Expected of fuse_layer_norm, and that the numbers stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.fuse_layer_norm import fuse_layer_norm
from passes.onnx.testing import importing, lines

CENTRED = "u = ReduceMean(x, last) d = Sub(x, u) "
MEAN = CENTRED + "q = Pow(d, two) m = ReduceMean(q, last) a = Add(m, e) r = Sqrt(a) "


def norm(body: str) -> Any:
    return importing(
        "g (float[b,s,4] x) => (float[b,s,4] z)<float[4] w = {1,2,3,4}, float[4] v = {5,6,7,8}, float e = {0.00001},"
        " float two = {2}, float one = {1}, int64[1] last = {-1}, int64[1] first = {1}> {"
        f" {body} z = Neg(y) }}",
        opset=18,
    )


def run(imp: Any) -> np.ndarray:
    imp.graph.opset_imports["com.microsoft"] = 1
    proto = ir.to_proto(imp.model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": np.array([[[1, 2, 4, 9], [0, 3, -1, 5]]], np.float32)})[0])


@pytest.mark.parametrize(
    ("body", "bias"),
    [
        (MEAN + "n = Div(d, r) k = Mul(n, w) y = Add(k, v)", "v"),  # torchscript before opset 17
        (MEAN + "i = Reciprocal(r) n = Mul(d, i) k = Mul(w, n) y = Add(v, k)", "v"),
        (MEAN + "i = Div(one, r) n = Mul(d, i) y = Mul(w, n)", "y.bias"),  # Cohere
        ("y = LayerNormalization <epsilon = 0.00001> (x, w)", "y.bias"),
        (CENTRED + "y = SimplifiedLayerNormalization <epsilon = 0.00001> (d, w)", "y.bias"),
    ],
)
def test_every_spelling_is_fused_and_keeps_its_numbers(body: str, bias: str) -> None:
    imp = norm(body)
    before = run(imp)
    assert run_pass(fuse_layer_norm, imp).matched == 1
    assert lines(imp.graph)[-2].split(" = ")[1].startswith(f"LayerNormalization(x, w, {bias})")
    assert len(imp.graph) == 2
    assert np.abs(run(imp) - before).max() < 1e-5
    imp.graph[0].attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.1)
    assert np.abs(run(imp) - before).max() > 1e-3  # the negative control


@pytest.mark.parametrize(
    "body",
    [
        MEAN.replace("d = Sub(x, u)", "d = Sub(u, x)") + "n = Div(d, r) y = Mul(n, w)",
        MEAN.replace("u = ReduceMean(x, last)", "u = ReduceMean(x, first)") + "n = Div(d, r) y = Mul(n, w)",
        MEAN + "n = Div(x, r) y = Mul(n, w)",
        MEAN + "n = Div(d, r) y = Mul(n, x)",
        "q = Pow(x, two) m = ReduceMean(q, last) a = Add(m, e) r = Sqrt(a) n = Div(x, r) y = Mul(n, w)",
        "y = LayerNormalization(x, w, v)",
        CENTRED.replace("Sub(x, u)", "Sub(u, x)") + "y = SimplifiedLayerNormalization(d, w)",
        CENTRED.replace("(x, last)", "(x, first)") + "y = SimplifiedLayerNormalization(d, w)",
        CENTRED + "y = SimplifiedLayerNormalization <axis = 1> (d, w)",
        "y = SimplifiedLayerNormalization(x, w)",
    ],
)
def test_what_is_none_is_left_alone(body: str) -> None:
    imp = norm(body)
    before = lines(imp.graph)
    assert run_pass(fuse_layer_norm, imp).matched == 0
    assert lines(imp.graph) == before
