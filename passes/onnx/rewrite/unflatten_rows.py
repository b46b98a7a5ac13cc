"""Rows that are flattened before several nodes and brought back after them -> the same nodes on [B, S, K].

    flat = Reshape(x, [B * S, K])
    y = Add(MatMul(Relu(MatMul(LayerNormalization(flat), U)), V), flat)   ->   the same of x, without the Reshapes
    Reshape(y, [B, S, K])

OPT does this around the feed-forward part. Each of the nodes computes a row from rows of the same place alone. What
sees flattened rows by head at once, [B, S, H, D], as onnxsim writes BLOOM, reads the same of [B, S, K].
"""

from __future__ import annotations

from typing import Any

from passes.onnx.pass_context import Importing, PassLog, attribute, replace_uses
from passes.onnx.prove.weight_expression import initializer_of, is_weight
from passes.onnx.shapes import Known, Point, known_shapes, points
from passes.onnx.weight_sizes import LINEAR

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Pow", "Relu", "Gelu", "Sigmoid", "Tanh", "Erf", "Neg"}
_NORMS = {"LayerNormalization", "RMSNormalization"}


def unflatten_rows(imp: Importing) -> PassLog:
    """Rewrite every Reshape of rows whose flattened rows all come back."""
    reshapes = [node for node in imp.graph if node.op_type == "Reshape" and not node.domain]
    known = [(known_shapes(imp, p), p) for p in points(imp)] if reshapes else []
    flattening = [node for node in reshapes if all(_flattens(node.inputs[0], node.outputs[0], *k) for k in known)]
    back = {node for node in reshapes if all(_flattens(node.outputs[0], node.inputs[0], *k) for k in known)}
    opening = {node for node in reshapes if all(_opens(node.inputs[0], node.outputs[0], *k) for k in known)}
    flat = {node.outputs[0]: node for node in flattening}
    if not flat:
        return PassLog("unflatten_rows", 0)
    for node in imp.graph:
        if any(v in flat for v in node.inputs) and _rowwise(node, flat):
            flat[node.outputs[0]] = node
    while lost := {value for value in flat if not _stays(value, flat, back | opening)}:
        for value in lost:
            flat.pop(value)
    matched = 0
    for value, node in flat.items():
        value.shape = None
        if node.op_type == "Reshape":
            replace_uses(value, node.inputs[0])
            matched += 1
    for node in back:
        if node.inputs[0] in flat:
            replace_uses(node.outputs[0], node.inputs[0])
    return PassLog("unflatten_rows", matched)


def _flattens(wide: Any, flat: Any, known: dict[Any, Known], at: Point) -> bool:
    """Whether a value [B, S, K] is seen as [B * S, K]."""
    if wide not in known or flat not in known or len(known[wide].shape) != 3:
        return False
    width = known[wide].shape[2]
    return (known[wide].shape[:2], known[flat].shape) == ((at.batch, at.new), (at.batch * at.new, width))


def _opens(flat: Any, parts: Any, known: dict[Any, Known], at: Point) -> bool:
    """Whether rows [B * S, K] are seen as [B, S, ...] with K in several dimensions."""
    if flat not in known or parts not in known or len(known[parts].shape) < 4:
        return False
    rows, shape = known[flat].shape, known[parts].shape
    return len(rows) == 2 and rows[0] == at.batch * at.new and shape[:2] == (at.batch, at.new)


def _rowwise(node: Any, flat: dict[Any, Any]) -> bool:
    """Whether a node computes each row from flattened rows of its place, and from weights alone."""
    others = [v for v in node.inputs if v is not None and v not in flat]
    if not all(is_weight(v) for v in others):
        return False
    if node.op_type in LINEAR:
        return node.inputs[0] in flat
    if node.op_type in _NORMS:
        return node.inputs[0] in flat and attribute(node, "axis", -1) == -1
    return node.op_type in _ELEMENTWISE and all(len(initializer_of(v).const_value.shape) <= 1 for v in others)


def _stays(value: Any, flat: dict[Any, Any], back: set[Any]) -> bool:
    """Whether all that reads a flattened value, and all flattened values that it is computed from, are rewritten."""
    node = flat[value]
    if value.is_graph_output() or any(user.outputs[0] not in flat and user not in back for user, _ in value.uses()):
        return False
    return node.op_type == "Reshape" or all(v is None or v in flat or is_weight(v) for v in node.inputs)
