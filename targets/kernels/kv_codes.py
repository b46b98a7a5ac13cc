"""The arithmetic of KV caches that store codes with scales, as TIR expressions: the same bits on every processor."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from targets.kv_format import LARGEST_CODE, LEAST_MAGNITUDE

_FINITE = 3.4028234e38


def magnitude(x: Any) -> Any:
    """|x| as an int32 that orders magnitudes, infinity and what is not a number above all others."""
    return tirx.reinterpret("int32", x) & T.int32(0x7FFFFFFF)


def scale_of(most: Any) -> Any:
    """The float32 scale of codes for numbers up to `most`, a magnitude; not finite where that is not."""
    return tirx.reinterpret("float32", most) * T.float32(1 / LARGEST_CODE)


def value_scale(most: Any, most_key: Any) -> Any:
    """The scale of a value: not finite where its key is not, so that no row that sees it loses that."""
    key = tirx.reinterpret("float32", most_key)
    return tirx.Select(key <= T.float32(_FINITE), scale_of(most), T.float32(float("inf")))


def factor_of(most: Any) -> Any:
    """What numbers up to `most` are multiplied with to be codes; 0 where there is nothing to store."""
    top = tirx.reinterpret("float32", most)
    used = T.And(top >= T.float32(LEAST_MAGNITUDE), top <= T.float32(_FINITE))
    return tirx.Select(used, T.float32(LARGEST_CODE) / top, T.float32(0))


def code_of(x: Any, factor: Any) -> Any:
    """The int8 code of a number, the nearest, halfway to even."""
    most = T.float32(LARGEST_CODE)
    within = tirx.max(tirx.min(x * factor, most), T.float32(-LARGEST_CODE))
    return tirx.Cast("int8", tirx.Cast("int32", T.nearbyint(within)))
