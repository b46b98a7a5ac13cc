"""A matrix multiplication with its activation, as onnxruntime's optimiser fuses them, and that the numbers stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from passes.onnx.load.check_nodes import check_nodes
from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.unfuse_onnxruntime import unfuse_onnxruntime
from passes.onnx.testing import importing, lines
from targets.errors import UserError


def fused(attributes: str) -> Any:
    return importing(
        "g (float[r,2] x) => (float[r,3] y) <float[3,2] w = {1, -2, 3, -4, 5, 6}, float[3] c = {0, 1, -9}> "
        f"{{ y = com.microsoft.FusedGemm <{attributes}> (x, w, c) }}"
    )


def run(imp: Any) -> np.ndarray:
    proto = ir.to_proto(imp.model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": np.array([[1, 2], [-3, 1]], np.float32)})[0])


def test_a_gemm_with_a_relu() -> None:
    imp = fused('activation = "Relu", transB = 1')
    before = run(imp)
    assert run_pass(unfuse_onnxruntime, imp).matched == 1
    assert lines(imp.graph) == ["y.gemm = Gemm(x, w, c) {transB: 1}", "y = Relu(y.gemm)"]
    assert np.array_equal(run(imp), before)
    assert (before == 0).any()
    assert not np.array_equal(run(fused('activation = "Tanh", transB = 1')), before)  # the negative control


def test_another_activation_or_none() -> None:
    with pytest.raises(UserError, match=r"has activation=Tanh; only Relu is supported"):
        check_nodes(Path("m.onnx"), fused('activation = "Tanh", transB = 1').model)
    entry = run_pass(unfuse_onnxruntime, fused("transB = 1"))
    assert entry.matched == 0
    assert entry.notes[0].endswith("it names no activation")
