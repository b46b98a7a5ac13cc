"""Sizes of the weights of canonical nodes."""

from __future__ import annotations

import math
from typing import Any

from passes.onnx.pass_context import attribute
from passes.onnx.prove.weight_expression import initializer_of

LINEAR = ("MatMul", "MatMulNBits", "MatMulBnb4")


def linear_size(node: Any) -> tuple[int, int]:
    """(inputs, outputs) of a matrix multiplication."""
    if node.op_type in LINEAR[1:]:
        return int(attribute(node, "K")), int(attribute(node, "N"))
    return matrix_size(node.inputs[1])


def table_size(node: Any) -> tuple[int, int]:
    """(rows, columns) of the table of a Gather or a GatherBlockQuantized."""
    if node.op_type == "Gather":
        return matrix_size(node.inputs[0])
    stored = initializer_of(node.inputs[0]).const_value
    rows, *width = (int(d) for d in stored.shape)
    packed = str(stored.dtype) == "UINT8"
    return rows, math.prod(width) * (8 // int(attribute(node, "bits", 4)) if packed else 1)


def matrix_size(value: Any) -> tuple[int, int]:
    """(rows, columns) of a weight expression of two dimensions."""
    transposed = False
    while value.producer() is not None:
        transposed ^= value.producer().op_type == "Transpose"
        value = value.producer().inputs[0]
    rows, columns = (int(d) for d in value.const_value.shape)
    return (columns, rows) if transposed else (rows, columns)
