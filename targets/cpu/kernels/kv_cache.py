"""How the attention kernels store a token's key and value in the caches, and read them: one way for each type.

Cache layout, per slot and KV head: keys [context / lanes, head_dim, lanes] (keys in lanes, so a dot product needs no
horizontal sum), values [context, head_dim]. Where the type has scales (targets/kv_format.py), a key tile has more rows:
4 bytes for each of its keys, then 4 for each of its values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile
from targets.kernels.kv_codes import code_of, factor_of, magnitude, scale_of, value_scale
from targets.kernels.vector_math import value_with_key
from targets.kv_format import KV_FORMATS

_KEY, _VALUE = 0, 1


@dataclass(frozen=True)
class KvCache:
    """What a type of cache needs in a kernel.

    Attributes:
        append: a macro (k, v, keys, values, slot, head, row, position): store row `row` of k and v.
        number: a stored number as float32, without its scale.
        key_scales, value_scales: (keys, slot, head, tile) -> those of a key tile's keys and values, a float32 for each
            lane; None where numbers have none.
    """

    append: Any
    number: Callable[[Any], Any]
    key_scales: Callable[..., Any] | None = None
    value_scales: Callable[..., Any] | None = None


def kv_cache(tile: CpuTile, head_dim: int, dtype: str) -> KvCache:
    """The caches of `dtype`, a name of KV_FORMATS."""
    return _codes(tile, head_dim) if KV_FORMATS[dtype].scales else _floats(tile, head_dim, dtype)


def _floats(tile: CpuTile, head_dim: int, dtype: str) -> KvCache:
    lanes, part = tile.lanes, tile.vector(head_dim)
    whole = dtype == "float32"

    def stored(value: Any) -> Any:
        return value if whole else T.Cast(dtype, value)

    def stored_value(value: Any, key: Any) -> Any:
        """A value, which shows what became of its key."""
        return value if whole else stored(value_with_key(value, key))

    def number(value: Any) -> Any:
        return value if whole else T.Cast("float32", value)

    @T.inline
    def append(k, v, keys, values, slot, head, row, position):  # type: ignore[no-untyped-def]
        for d in T.serial(head_dim):
            keys[slot, head, position // lanes, d, position % lanes] = stored(k[0, row, head * head_dim + d])
        for d in T.unroll(head_dim // part):
            for i in T.vectorized(part):
                values[slot, head, position, d * part + i] = stored_value(
                    v[0, row, head * head_dim + d * part + i], k[0, row, head * head_dim + d * part + i]
                )

    return KvCache(append, number)


def _codes(tile: CpuTile, head_dim: int) -> KvCache:
    """A value whose key is not finite gets a scale that is not, which spoils every row that sees it."""
    lanes, part = tile.lanes, tile.vector(head_dim)

    def number(value: Any) -> Any:
        return T.Cast("float32", value)

    def scales(which: int) -> Callable[..., Any]:
        def read(keys: Any, slot: Any, head: Any, tile: Any) -> Any:
            stored = keys[slot, head, tile, head_dim + 4 * which, T.Ramp(0, 1, 4 * lanes)]
            return T.reinterpret(stored, dtype=f"float32x{lanes}")

        return read

    @T.inline
    def put_scale(keys, slot, head, position, which, scale):  # type: ignore[no-untyped-def]
        keys[
            slot,
            head,
            position // lanes,
            head_dim + 4 * which + 4 * (position % lanes) // lanes,
            T.Ramp(4 * (position % lanes) % lanes, 1, 4),
        ] = T.reinterpret(scale, dtype="int8x4")

    @T.inline
    def append(k, v, keys, values, slot, head, row, position):  # type: ignore[no-untyped-def]
        most = T.sblock_alloc_buffer((2, part), "int32", scope="local")
        factor = T.sblock_alloc_buffer((2,), "float32", scope="local")
        code = T.sblock_alloc_buffer((head_dim,), "int8", scope="local")
        for i in T.vectorized(part):
            most[_KEY, i] = T.int32(0)
        for i in T.vectorized(part):
            most[_VALUE, i] = T.int32(0)
        for d in T.unroll(head_dim // part):
            for i in T.vectorized(part):
                most[_KEY, i] = T.max(most[_KEY, i], magnitude(k[0, row, head * head_dim + d * part + i]))
            for i in T.vectorized(part):
                most[_VALUE, i] = T.max(most[_VALUE, i], magnitude(v[0, row, head * head_dim + d * part + i]))
        for i in T.unroll(1, part):
            most[_KEY, 0] = T.max(most[_KEY, 0], most[_KEY, i])
            most[_VALUE, 0] = T.max(most[_VALUE, 0], most[_VALUE, i])
        factor[_KEY] = factor_of(most[_KEY, 0])
        factor[_VALUE] = factor_of(most[_VALUE, 0])
        for d in T.unroll(head_dim // part):
            for i in T.vectorized(part):
                code[d * part + i] = code_of(k[0, row, head * head_dim + d * part + i], factor[_KEY])
            for i in T.vectorized(part):
                values[slot, head, position, d * part + i] = code_of(
                    v[0, row, head * head_dim + d * part + i], factor[_VALUE]
                )
        for d in T.serial(head_dim):
            keys[slot, head, position // lanes, d, position % lanes] = code[d]
        put_scale(keys, slot, head, position, _KEY, scale_of(most[_KEY, 0]))
        put_scale(keys, slot, head, position, _VALUE, value_scale(most[_VALUE, 0], most[_KEY, 0]))

    return KvCache(append, number, scales(_KEY), scales(_VALUE))
