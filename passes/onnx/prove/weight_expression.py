"""Weights of a graph: an initialiser behind nothing but Cast, Transpose and Reshape."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from passes.onnx.pass_context import attribute

_WEIGHT_OPERATORS = ("Cast", "Transpose", "Reshape")


def is_weight(value: Any) -> bool:
    """Whether a value is an initialiser behind nothing but Cast, Transpose and Reshape."""
    while value is not None and value.producer() is not None:
        if value.producer().op_type not in _WEIGHT_OPERATORS:
            return False
        value = value.producer().inputs[0]
    return value is not None and value.const_value is not None


def initializer_of(value: Any) -> Any:
    """The initialiser behind a weight expression."""
    while value.producer() is not None:
        value = value.producer().inputs[0]
    return value


def stored(value: Any) -> Any:
    """The initialiser that a weight expression stores as it is or to be cast up to float32; None: it is rearranged."""
    while value is not None and value.producer() is not None:
        node = value.producer()
        if node.op_type != "Cast" or weight_operator(node):
            return None
        value = node.inputs[0]
    return value if value is not None and value.const_value is not None else None


def weight_operator(node: Any) -> str:
    """Why a Cast, Transpose or Reshape does not belong to a weight; empty if it does."""
    if not is_weight(node.outputs[0]):
        return "it is applied to a computed value, not to a weight"
    dtype = initializer_of(node.inputs[0]).const_value.dtype
    if node.op_type == "Cast" and (attribute(node, "to") != ir.DataType.FLOAT or not dtype.is_floating_point()):
        return f"it makes a weight of {dtype.name} another one than float32"
    return ""
