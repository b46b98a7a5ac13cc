"""Matrix multiplications that onnxruntime's optimiser joined with other nodes: the numbers stay, recipes find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from passes.onnx import PIPELINE
from passes.onnx.load.check_nodes import check_nodes
from passes.onnx.pass_context import run_pass
from passes.onnx.quantise.recipe import Recipe, block_format
from passes.onnx.rewrite.quantise_weights import quantise_weights
from passes.onnx.rewrite.unfuse_linear import unfuse_linear
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
    assert run_pass(unfuse_linear, imp).matched == 1
    assert lines(imp.graph) == ["y.gemm = Gemm(x, w, c) {transB: 1}", "y = Relu(y.gemm)"]
    assert np.array_equal(run(imp), before)
    assert (before == 0).any()
    assert not np.array_equal(run(fused('activation = "Tanh", transB = 1')), before)  # the negative control


def test_another_activation_or_none() -> None:
    with pytest.raises(UserError, match=r"has activation=Tanh; only Relu is supported"):
        check_nodes(Path("m.onnx"), fused('activation = "Tanh", transB = 1').model)
    entry = run_pass(unfuse_linear, fused("transB = 1"))
    assert entry.matched == 0
    assert entry.notes[0].endswith("it names no activation")


@pytest.mark.parametrize(
    ("operator", "left"),
    [
        (
            'y = com.microsoft.FusedGemm <activation = "Relu", transB = 1> (f, w) logits = Neg(y)',
            "Gemm Relu Neg",
        ),
        ("logits = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (x, w)", "Transpose MatMul Mul"),
    ],
)
def test_a_recipe_finds_its_matrix(operator: str, left: str) -> None:
    imp = importing(
        f"g (float[b,s,16] x) => (float[b,s,2] logits) <float[2,16] w = {{{','.join(map(str, range(32)))}}}, "
        f"int64[2] rows = {{-1, 16}}> {{ f = Reshape(x, rows) {operator} }}"
    )
    imp.recipe = Recipe(*[block_format("int8", 16)] * 3)
    for run_in_order in (run for run in PIPELINE if run in (unfuse_linear, quantise_weights)):
        assert run_pass(run_in_order, imp).matched == 1
    assert [n.op_type for n in imp.graph if n.op_type not in ("Cast", "Reshape")] == ["DequantizeLinear", *left.split()]


def test_a_scaled_matrix_multiplication() -> None:
    def scaled(alpha: float) -> Any:
        return importing(
            "g (float[r,2] x) => (float[r,3] y) <float[3,2] w = {1, -2, 3, -4, 5, 6}> "
            f"{{ y = com.microsoft.FusedMatMul <alpha = {alpha}, transB = 1> (x, w) }}"
        )

    imp = scaled(0.5)
    before = run(imp)
    assert run_pass(unfuse_linear, imp).matched == 1
    assert lines(imp.graph) == [
        "y.weight = Transpose(w) {perm: [1, 0]}",
        "y.matmul = MatMul(x, y.weight)",
        "y = Mul(y.matmul, y.alpha)",
    ]
    assert np.array_equal(run(imp), before)
    assert not np.array_equal(run(scaled(0.25)), before)  # the negative control
