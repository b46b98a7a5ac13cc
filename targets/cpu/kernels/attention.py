"""Attention over the in-place KV cache: one kernel appends the new rows and attends.

Appending and attending are one PrimFunc on purpose: TVM deletes an in-place write whose result is not used.

Row t of the new tokens is at position pos + t, and attends as attention_tile.py says. The caller checks
pos + n <= context. A task is a KV head and a tile of rows.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.kernels.attention_tile import attention_parts
from targets.cpu.tile import CpuTile
from targets.kv_format import KV_FORMATS


@functools.cache
def attention_cached(
    tile: CpuTile,
    n: int,
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
    """The PrimFunc (q, k, v, key cache, value cache, pos, y); q, y [1, n, heads * head_dim], k, v with kv_heads.

    What the other arguments mean: `attention_parts`.
    """
    lanes, tiles, key_rows = tile.lanes, context // tile.lanes, head_dim + KV_FORMATS[cache].scale_rows
    cut = tile.attention(n, heads // kv_heads, head_dim // tile.vector(head_dim))
    rows, row_tiles = cut.rows, n // cut.rows
    parts = attention_parts(tile, cut, heads, kv_heads, head_dim, context, scale, window, softcap, cache, slopes)
    append, attend = parts.append, parts.attend

    @T.prim_func(s_tir=True)
    def attention_cached(
        q: T.Buffer((1, n, heads * head_dim), "float32"),
        k: T.Buffer((1, n, kv_heads * head_dim), "float32"),
        v: T.Buffer((1, n, kv_heads * head_dim), "float32"),
        keys: T.Buffer((1, kv_heads, tiles, key_rows, lanes), cache),
        values: T.Buffer((1, kv_heads, context, head_dim), cache),
        pos: T.int64,
        y: T.Buffer((1, n, heads * head_dim), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        if row_tiles > 1:
            for h in T.parallel(kv_heads):
                with T.sblock("append"):
                    va = T.axis.spatial(kv_heads, h)
                    for t in T.serial(n):
                        append(k, v, keys, values, 0, va, t, pos + t)
        for p in T.parallel(kv_heads * row_tiles):
            with T.sblock("tile"):
                vp = T.axis.spatial(kv_heads * row_tiles, p)
                vh = T.meta_var(vp // row_tiles)
                # early and late tiles alternate: equal shares of the tasks are equal work
                nth = T.meta_var(vp % row_tiles)
                first = T.meta_var((nth // 2 + nth % 2 * (row_tiles - 1 - nth // 2 * 2)) * rows)
                if row_tiles == 1:
                    for t in T.serial(n):
                        append(k, v, keys, values, 0, vh, t, pos + t)
                attend(q, keys, values, y, 0, vh, first, pos + first)

    return attention_cached
