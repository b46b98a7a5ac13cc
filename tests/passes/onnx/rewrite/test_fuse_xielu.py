"""xIELU in other spellings than the exporter's, and what is another function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.fuse_xielu import fuse_xielu
from passes.onnx.testing import importing, lines

X = np.array([[[-5, -0.5, 0.25, 3]]], np.float32)
POSITIVE = "sq = Mul(x, x) p = Mul(sq, a) l = Mul(x, b) over = Add(p, l)"
NEGATIVE = "u = Min(x, eps) g = Exp(u) h = Sub(g, one) i = Sub(h, x) n = Mul(i, c) under = Add(n, l)"


def activation(body: str) -> Any:
    return importing(
        "g (float[b,s,4] x) => (float[b,s,4] z)<float a = {0.8}, float[1] b = {0.5}, float c = {1.3},"
        " float eps = {-0.000001}, float zero = {0}, float one = {1}> {"
        f" {body} z = Sigmoid(y) }}",
        opset=18,
    )


def run(imp: Any) -> np.ndarray:
    imp.graph.opset_imports[""] = 18
    session = onnxruntime.InferenceSession(ir.to_proto(imp.model).SerializeToString())
    return np.asarray(session.run(None, {"x": X})[0])


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        (f"{POSITIVE} {NEGATIVE} t = Greater(x, zero) y = Where(t, over, under)", (0.8, 1.3, 0.5)),
        (f"{POSITIVE} {NEGATIVE} t = LessOrEqual(x, zero) y = Where(t, under, over)", (0.8, 1.3, 0.5)),
        ("u = Min(x, zero) g = Exp(u) h = Sub(g, one) o = Max(x, zero) y = Add(h, o)", (0, 1, 1)),  # ELU
    ],
)
def test_every_spelling_keeps_its_numbers(body: str, constants: tuple[float, ...]) -> None:
    imp = activation(body)
    before = run(imp)
    assert run_pass(fuse_xielu, imp).matched == 1
    assert [node.op_type for node in imp.graph] == ["XIELU", "Sigmoid"]
    node = imp.graph[0]
    found = [node.attributes[name].value for name in ("positive", "negative", "beta")]
    np.testing.assert_allclose(found, constants, atol=1e-6)
    np.testing.assert_allclose(run(imp), before, atol=1e-5)
    node.attributes["negative"] = ir.AttrFloat32("negative", 1.01 * constants[1])
    assert np.abs(run(imp) - before).max() > 1e-3  # the negative control


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{POSITIVE} {NEGATIVE} t = Greater(x, one) y = Where(t, over, under)", "no xIELU"),
        ("g = Exp(x) y = Add(g, x)", "no xIELU"),
        (f"{POSITIVE} {NEGATIVE} t = Greater(x, zero) w = Where(t, over, under) y = Add(w, g)", "no xIELU"),
        ("g = Exp(x) k = Sigmoid(g) m = Mul(g, c) y = Add(k, m)", "used in the middle"),
    ],
)
def test_another_function_stays_with_the_reason(body: str, reason: str) -> None:
    imp = activation(body)
    before = lines(imp.graph)
    log = run_pass(fuse_xielu, imp)
    assert log.matched == 0
    assert reason in log.notes[0]
    assert lines(imp.graph) == before
