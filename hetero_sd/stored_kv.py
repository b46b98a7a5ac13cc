"""What a KV cache of a type keeps of keys and values, in numpy: the rounding that the attention kernels do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from targets.kv_format import KV_FORMATS, LARGEST_CODE, LEAST_MAGNITUDE

Array = npt.NDArray[np.float32]


def as_stored(x: Array, kv: str) -> Array:
    """Keys or values float32 [..., head_dim] as they are read again; what a type has no number for is infinite."""
    if not KV_FORMATS[kv].scales:
        with np.errstate(over="ignore"):
            return x.astype(kv).astype(np.float32)
    codes, scale = codes_of(x)
    with np.errstate(invalid="ignore"):
        return codes.astype(np.float32) * scale


def codes_of(x: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """Codes int8 [..., head_dim] and scales [..., 1] of a type with scales, bit for bit those of the kernels."""
    most: Any = np.abs(x).max(-1, keepdims=True)
    finite = np.isfinite(most)
    used = (most >= np.float32(LEAST_MAGNITUDE)) & finite
    factor = np.where(used, np.float32(LARGEST_CODE) / np.where(used, most, 1), 0).astype(np.float32)
    codes = np.rint(np.where(finite, x, 0) * factor).astype(np.int8)
    return codes, (most * np.float32(1 / LARGEST_CODE)).astype(np.float32)
