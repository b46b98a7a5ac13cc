"""How the OpenCL attention kernels store a token's key and value in the caches, and read them: one way for each type.

Layout of a slot: keys [kv heads, context / l, head_dim, l], values [kv heads, context, head_dim]; scales, where the
type has them, lie in the key tiles as on the CPU (targets/cpu/kernels/kv_cache.py). A work-item stores one number of a
key and one of a value; for a scale it looks at the whole head, which it finds in a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from targets.kernels.kv_codes import code_of, factor_of, magnitude, scale_of, value_scale
from targets.kernels.vector_math import value_with_key
from targets.kv_format import KV_FORMATS
from targets.opencl.kernels import load_half, store_half

_KEY, _VALUE = 0, 1


@dataclass(frozen=True)
class KvCache:
    """What a type of cache needs in a kernel.

    Attributes:
        append: a macro (k, v, keys, values, slot, row, head, column, position) that stores one number of each; in a
            block of its own.
        vector: (lanes, buffer, index, ...) -> that many stored numbers as float32, without their scales.
        key_scales, value_scales: (keys, slot, head, tile) -> those of a key tile's keys and values, a float32 for
            each lane; None where numbers have none.
    """

    append: Any
    vector: Callable[..., Any]
    key_scales: Callable[..., Any] | None = None
    value_scales: Callable[..., Any] | None = None


def kv_cache(lanes: int, head_dim: int, dtype: str) -> KvCache:
    """The caches of `dtype`, a name of KV_FORMATS, with `lanes` keys in a tile."""
    if KV_FORMATS[dtype].scales:
        return _codes(lanes, head_dim)
    return _halves(lanes, head_dim) if dtype == "float16" else _floats(lanes, head_dim)


def _floats(lanes: int, head_dim: int) -> KvCache:
    @T.inline
    def append(k, v, keys, values, slot, row, head, column, position):  # type: ignore[no-untyped-def]
        keys[slot, head, position // lanes, column, position % lanes] = k[0, row, head * head_dim + column]
        values[slot, head, position, column] = v[0, row, head * head_dim + column]

    return KvCache(append, _loaded)


def _halves(lanes: int, head_dim: int) -> KvCache:
    def vector(lanes: int, buffer: Any, *index: Any) -> Any:
        return load_half(buffer, *index, lanes=lanes)

    @T.inline
    def append(k, v, keys, values, slot, row, head, column, position):  # type: ignore[no-untyped-def]
        T.evaluate(
            store_half(
                k[0, row, head * head_dim + column],
                *(keys, slot, head, position // lanes, column, position % lanes),
            )
        )
        T.evaluate(
            store_half(
                value_with_key(v[0, row, head * head_dim + column], k[0, row, head * head_dim + column]),
                *(values, slot, head, position, column),
            )
        )

    return KvCache(append, vector)


def _codes(lanes: int, head_dim: int) -> KvCache:
    def vector(lanes: int, buffer: Any, *index: Any) -> Any:
        return T.Cast(f"float32x{lanes}" if lanes > 1 else "float32", _loaded(lanes, buffer, *index))

    def scales(which: int) -> Callable[..., Any]:
        def read(keys: Any, slot: Any, head: Any, tile: Any) -> Any:
            pointer = T.address_of(keys[slot, head, tile, head_dim + 4 * which, 0])
            stored = T.call_pure_extern("int32", f"vload{4 * lanes}", 0, pointer)  # whose TIR type is never used
            return T.call_pure_extern(f"float32x{lanes}", f"as_float{lanes}", stored)

        return read

    def put_scale(scale: Any, keys: Any, slot: Any, head: Any, position: Any, which: int) -> Any:
        row = head_dim + 4 * which + 4 * (position % lanes) // lanes
        pointer = T.address_of(keys[slot, head, position // lanes, row, 4 * (position % lanes) % lanes])
        return T.call_extern("void", "vstore4", T.call_pure_extern("int8x4", "as_char4", scale), 0, pointer)

    @T.inline
    def append(k, v, keys, values, slot, row, head, column, position):  # type: ignore[no-untyped-def]
        most = T.sblock_alloc_buffer((2,), "int32", scope="local")
        most[_KEY] = 0
        most[_VALUE] = 0
        for d in T.serial(head_dim):
            most[_KEY] = T.max(most[_KEY], magnitude(k[0, row, head * head_dim + d]))
            most[_VALUE] = T.max(most[_VALUE], magnitude(v[0, row, head * head_dim + d]))
        keys[slot, head, position // lanes, column, position % lanes] = code_of(
            k[0, row, head * head_dim + column], factor_of(most[_KEY])
        )
        values[slot, head, position, column] = code_of(v[0, row, head * head_dim + column], factor_of(most[_VALUE]))
        if column == 0:
            T.evaluate(put_scale(scale_of(most[_KEY]), keys, slot, head, position, _KEY))
            T.evaluate(put_scale(value_scale(most[_VALUE], most[_KEY]), keys, slot, head, position, _VALUE))

    return KvCache(append, vector, scales(_KEY), scales(_VALUE))


def _loaded(lanes: int, buffer: Any, *index: Any) -> Any:
    """`lanes` numbers from `index` on as they are."""
    *before, first = index
    return buffer[(*before, T.Ramp(first, 1, lanes) if lanes > 1 else first)]
