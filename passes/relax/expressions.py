"""Types, shapes and operators of Relax expressions."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax


def tensor(shape: Any, dtype: str = "float32") -> Any:
    """The Relax type of a tensor."""
    return relax.TensorType(shape, dtype)


def shape_of(expr: Any) -> list[Any]:
    """Dimensions of an expression or a type, symbolic ones as they are."""
    ty = expr if isinstance(expr, relax.TensorType) else expr.ty
    return list(ty.shape.values)


def op_name(expr: Any) -> str:
    """Name of the operator a call calls, "" for anything else."""
    return str(expr.op.name) if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) else ""
