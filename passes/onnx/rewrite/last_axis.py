"""Softmax and norms over the last axis, however its number is written: axis -> -1. Any other axis is refused.

    Softmax(scores [B, heads, S, T]){axis 3}     ->     Softmax(scores){axis -1}

Later passes take these operators to work on the last axis; without this one they would not know.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from passes.onnx.operator_rule import LAST_AXIS
from passes.onnx.operator_rules import RULES
from passes.onnx.pass_context import Importing, PassLog, attribute, describe
from passes.onnx.shapes import known_shapes, points
from targets.errors import UserError


def last_axis(imp: Importing) -> PassLog:
    """Write the last axis as -1.

    Raises:
        UserError: an operator that operator_rules.py allows on the last axis alone works on another one.
    """
    nodes = [node for node in imp.graph if _reads_axis(node) and attribute(node, "axis", -1) != -1]
    known = known_shapes(imp, points(imp)[0]) if nodes else {}
    for node in nodes:
        axis, x = attribute(node, "axis"), node.inputs[0]
        if x not in known or axis != len(known[x].shape) - 1:
            rank = f"{len(known[x].shape)} dimensions" if x in known else "a rank that cannot be told"
            raise UserError(f"{describe(node)} has axis={axis} of {rank}; only the last axis is supported")
        node.attributes["axis"] = ir.AttrInt64("axis", -1)
    return PassLog("last_axis", len(nodes))


def _reads_axis(node: Any) -> bool:
    rule = RULES.get((node.domain, node.op_type))
    return rule is not None and rule.attributes.get("axis") == LAST_AXIS
