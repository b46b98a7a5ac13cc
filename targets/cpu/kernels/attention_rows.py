"""Attention of rows that are each at a position of a slot of their own: rows of several sequences in one call.

All rows are stored first, so that rows of one sequence see the keys of those before them; then a task is a KV head and
a row. A row has the bits that attention.py gives it. The caller checks that slots and positions are within the caches;
two rows at one place are the same row.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.kernels.attention_tile import attention_parts
from targets.cpu.tile import CpuTile
from targets.kv_format import KV_FORMATS


@functools.cache
def attention_rows(
    tile: CpuTile,
    n: int,
    slots: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    scale: float,
    window: int,
    softcap: float,
    cache: str = "float32",
    slopes: tuple[float, ...] = (),
) -> Any:
    """The PrimFunc (q, k, v, key cache, value cache, slot and position of each row, y); the rest as attention_cached.

    The caches have `slots` slots.
    """
    lanes, tiles, key_rows = tile.lanes, context // tile.lanes, head_dim + KV_FORMATS[cache].scale_rows
    cut = tile.attention(1, heads // kv_heads, head_dim // tile.vector(head_dim))
    parts = attention_parts(tile, cut, heads, kv_heads, head_dim, context, scale, window, softcap, cache, slopes)
    append, attend = parts.append, parts.attend

    @T.prim_func(s_tir=True)
    def attention_rows(
        q: T.Buffer((1, n, heads * head_dim), "float32"),
        k: T.Buffer((1, n, kv_heads * head_dim), "float32"),
        v: T.Buffer((1, n, kv_heads * head_dim), "float32"),
        keys: T.Buffer((slots, kv_heads, tiles, key_rows, lanes), cache),
        values: T.Buffer((slots, kv_heads, context, head_dim), cache),
        slot: T.Buffer((n,), "int64"),
        pos: T.Buffer((n,), "int64"),
        y: T.Buffer((1, n, heads * head_dim), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for h in T.parallel(kv_heads):
            with T.sblock("append"):
                va = T.axis.spatial(kv_heads, h)
                for t in T.serial(n):
                    append(k, v, keys, values, slot[t], va, t, pos[t])
        for p in T.parallel(kv_heads * n):
            with T.sblock("row"):
                vp = T.axis.spatial(kv_heads * n, p)
                attend(q, keys, values, y, slot[vp % n], vp // n, vp % n, pos[vp % n])

    return attention_rows
