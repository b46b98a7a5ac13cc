"""What onnxruntime's optimiser writes into a file that it saves -> the standard operators it was made of.

    FusedMatMul(a, b){alpha, transB}         ->  Mul(MatMul(a, Transpose(b)), alpha)
    SkipLayerNormalization(x, r, w, b, c)    ->  LayerNormalization(Add(Add(x, r), c), w, b)
    Exp(x - ReduceMax(x)) / ReduceSum(that)  ->  Softmax(x)

The first two are of its level "extended"; the last is what it makes of a Softmax in half precision. The activations of
that level are read where activations are (unfuse_linear, fuse_activations, canonical_matmuls), its norms without a mean
in fuse_rms_norm; what else it writes is refused by name.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.onnx.pass_context import (
    Declined,
    Importing,
    PassLog,
    add_initializer,
    attribute,
    describe,
    emit,
    replace_uses,
)
from passes.onnx.shape_rules import fused_permutation
from passes.onnx.shapes import known_shapes, points


def unfuse_onnxruntime(imp: Importing) -> PassLog:
    """Rewrite every such node; others stay, with the reason in the log."""
    nodes = [node for node in imp.graph if (node.domain, node.op_type) in _REWRITES]
    if not nodes:
        return PassLog("unfuse_onnxruntime", 0)
    known, matched, notes = known_shapes(imp, points(imp)[0]), 0, []
    for node in nodes:
        try:
            matched += _REWRITES[node.domain, node.op_type](imp, node, known)
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("unfuse_onnxruntime", matched, tuple(notes))


def _fused_matmul(imp: Importing, node: Any, known: dict[Any, Any]) -> bool:
    name, operands = node.outputs[0].name, []
    for side, value in zip("AB", node.inputs, strict=True):
        if value not in known or len(known[value].shape) < 2:
            raise Declined(f"the shape of {value.name} is unknown")
        rank = len(known[value].shape)
        perm = fused_permutation(node, side, rank)
        if perm != list(range(rank)):
            value = emit(node, "Transpose", [value], {"perm": perm}, outputs=[f"{name}.{side}"]).outputs[0]
        operands.append(value)
    matmul = emit(node, "MatMul", operands, name=node.name, outputs=[f"{name}.matmul"]).outputs[0]
    alpha = attribute(node, "alpha", 1.0)
    if alpha != 1.0:
        factor = add_initializer(imp.graph, f"{name}.alpha", np.array(alpha, np.float32))
        matmul.type = node.outputs[0].type
        matmul = emit(node, "Mul", [matmul, factor], outputs=[f"{name}.scaled"]).outputs[0]
    replace_uses(node.outputs[0], matmul)
    if node.outputs[0] in known:
        known[matmul] = known[node.outputs[0]]
    return True


def _skip_layer_norm(imp: Importing, node: Any, known: dict[Any, Any]) -> bool:
    x, skip, weight, *rest = node.inputs
    shift, bias = (*rest, None, None)[:2]
    if any(o.uses() for o in node.outputs[1:3]):
        raise Declined("its mean or variance output is used")
    if x not in known or skip not in known or known[x].shape != known[skip].shape:
        raise Declined("what it adds have two shapes")
    name = node.outputs[0].name
    total = emit(node, "Add", [x, skip], outputs=[f"{name}.sum"]).outputs[0]
    if bias is not None:
        total.type = node.outputs[0].type
        total = emit(node, "Add", [total, bias], outputs=[f"{name}.biased"]).outputs[0]
    total.type = node.outputs[0].type
    if len(node.outputs) > 3:
        replace_uses(node.outputs[3], total)
    attributes = {"axis": -1, "epsilon": attribute(node, "epsilon", 1e-12)}
    inputs = [x for x in (total, weight, shift) if x is not None]
    norm = emit(node, "LayerNormalization", inputs, attributes, name=node.name, outputs=[f"{name}.norm"])
    replace_uses(node.outputs[0], norm.outputs[0])
    known[total] = known[norm.outputs[0]] = known[x]  # the next layer adds to one of them
    return True


def _softmax(imp: Importing, node: Any, known: dict[Any, Any]) -> bool:
    """A division of exponentials by their sum over the last axis; any other division is left alone."""
    powers, total = node.inputs[0].producer(), node.inputs[1].producer()
    if powers is None or powers.op_type != "Exp" or not _over_last(total, "ReduceSum", powers.outputs[0], known):
        return False
    shifted = powers.inputs[0].producer()
    if shifted is None or shifted.op_type != "Sub":
        return False
    x, most = shifted.inputs
    if not _over_last(most.producer(), "ReduceMax", x, known):
        return False
    name = f"{node.outputs[0].name}.softmax"
    replace_uses(node.outputs[0], emit(node, "Softmax", [x], {"axis": -1}, name=node.name, outputs=[name]).outputs[0])
    return True


def _over_last(node: Any, operator: str, operand: Any, known: dict[Any, Any]) -> bool:
    """Whether a node reduces that operand over its last axis and keeps the dimension."""
    if node is None or node.op_type != operator or node.inputs[0] is not operand or not attribute(node, "keepdims", 1):
        return False
    axes = attribute(node, "axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] in known and known[node.inputs[1]].data is not None:
        axes = known[node.inputs[1]].data.reshape(-1).tolist()
    return operand in known and list(axes or ()) in ([-1], [len(known[operand].shape) - 1])


_REWRITES = {
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("com.microsoft", "SkipLayerNormalization"): _skip_layer_norm,
    ("", "Div"): _softmax,
}
