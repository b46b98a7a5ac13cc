"""NaN and infinity are refused where a model is compiled: one such weight spoils every token.

Weights are checked as they are stored, while the one array is in memory, so that a number which overflows in a
conversion counts too. The minus infinity of a mask is not stored: masks are attributes of the decoder dialect.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from targets.errors import UserError

_CHUNK = 1 << 16  # values at a time: the copy without signs stays in a cache


def check_finite(where: str, array: npt.NDArray[Any]) -> None:
    """Check a stored weight; integers always pass.

    As unsigned integers without their sign bits, the numbers of IEEE 754 are ordered, infinity and NaN last.

    Raises:
        UserError: a value is NaN or infinite; the message begins with ``where``, which names the tensor.
    """
    if array.dtype.kind != "f":
        return
    bits = array.reshape(-1).view(f"u{array.itemsize}")
    infinity = np.array(np.inf, array.dtype).view(bits.dtype)
    no_sign = np.array(~(1 << (8 * array.itemsize - 1)) & ((1 << 8 * array.itemsize) - 1), bits.dtype)
    for start in range(0, len(bits), _CHUNK):
        if (bits[start : start + _CHUNK] & no_sign).max() >= infinity:
            values = array.reshape(-1)[start : start + _CHUNK]
            value = values[~np.isfinite(values)][0]
            raise UserError(
                f"{where}, stored as {array.dtype}, holds {value}, which would spoil every token: export the "
                "model again"
            )


def check_attributes(attrs: dict[str, Any], node: Any) -> None:
    """Check the numbers of an operator, such as the epsilon of a norm.

    Raises:
        UserError: one is NaN or infinite; the message names the node.
    """
    for key, value in attrs.items():
        value = getattr(value, "value", value)  # of TVM's FloatImm
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"node {node.name!r} ({node.op_type}): {key} is {value}: export the model again")
