"""What onnxruntime's optimiser makes of a matrix multiplication with a weight -> the standard operators.

    FusedGemm(a, W, c){activation Relu}      ->  Relu(Gemm(a, W, c))
    FusedMatMul(x, W [N, K]){alpha, transB}  ->  Mul(MatMul(x, Transpose(W)), alpha)

Before anything is quantised, so that a recipe finds the matrix. Other FusedMatMuls are read in unfuse_onnxruntime.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.onnx.pass_context import (
    Importing,
    PassLog,
    add_initializer,
    attribute,
    describe,
    emit,
    replace_uses,
)
from passes.onnx.prove.weight_expression import stored


def unfuse_linear(imp: Importing) -> PassLog:
    """Rewrite every FusedGemm that names an activation, and every FusedMatMul of rows with a weight."""
    matched, notes = 0, []
    for node in [node for node in imp.graph if node.domain == "com.microsoft"]:
        if node.op_type == "FusedGemm" and "activation" not in node.attributes:
            notes.append(f"{describe(node)}: it names no activation")
        elif node.op_type == "FusedGemm":
            _gemm(node)
            matched += 1
        elif node.op_type == "FusedMatMul" and _of_weight(node):
            _matmul(imp, node)
            matched += 1
    return PassLog("unfuse_linear", matched, tuple(notes))


def _gemm(node: Any) -> None:
    y, kept = node.outputs[0], ("alpha", "beta", "transA", "transB")
    attributes = {key: attribute(node, key) for key in kept if key in node.attributes}
    gemm = emit(node, "Gemm", list(node.inputs), attributes, name=node.name, outputs=[f"{y.name}.gemm"]).outputs[0]
    gemm.type = y.type
    replace_uses(y, emit(node, "Relu", [gemm], outputs=[f"{y.name}.relu"]).outputs[0])


def _of_weight(node: Any) -> bool:
    turned = any(attribute(node, key, 0) for key in ("transA", "transBatchA", "transBatchB"))
    weight = stored(node.inputs[1])
    return not turned and weight is not None and len(weight.const_value.shape) == 2


def _matmul(imp: Importing, node: Any) -> None:
    x, weight = node.inputs
    y, alpha = node.outputs[0], attribute(node, "alpha", 1.0)
    if attribute(node, "transB", 0):
        dtype = weight.type
        weight = emit(node, "Transpose", [weight], {"perm": [1, 0]}, outputs=[f"{y.name}.weight"]).outputs[0]
        weight.type = dtype
    made = emit(node, "MatMul", [x, weight], name=node.name, outputs=[f"{y.name}.matmul"]).outputs[0]
    if alpha != 1.0:
        made.type = y.type
        factor = add_initializer(imp.graph, f"{y.name}.alpha", np.array(alpha, np.float32))
        made = emit(node, "Mul", [made, factor], outputs=[f"{y.name}.scaled"]).outputs[0]
    replace_uses(y, made)
