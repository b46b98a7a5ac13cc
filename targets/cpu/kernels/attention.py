"""Attention over the in-place KV cache: one kernel appends the new rows and attends.

Appending and attending are one PrimFunc on purpose: TVM deletes an in-place write whose result is not used.

Row t of the new tokens is at position pos + t, and attends as attention_tile.py says. The caller checks
pos + n <= context. A task is a KV head and some tiles of rows, which go over the keys together, chunk by chunk. Of few
rows each chunk is a task of its own, and the calling thread joins what the chunks have found, which is little.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.kernels.attention_tile import attention_parts
from targets.cpu.tile import CHUNK, CpuTile, chunk_tasks, row_groups
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
    append, chunk, add, store = parts.append, parts.chunk, parts.add, parts.store
    first_chunk, queries = parts.first_chunk, parts.queries
    split, most = chunk_tasks(n, context), -(-context // CHUNK)
    groups = row_groups(kv_heads, row_tiles)
    own = row_tiles // groups  # tiles of a task

    def sees(position: Any, c: Any) -> Any:
        """Whether some row of a tile from `position` on sees a chunk."""
        return (
            T.And(c * CHUNK < position + rows, c >= first_chunk(position))
            if window > 0
            else c * CHUNK < position + rows
        )

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
        if groups > 1:
            for h in T.parallel(kv_heads):
                with T.sblock("append"):
                    va = T.axis.spatial(kv_heads, h)
                    for t in T.serial(n):
                        append(k, v, keys, values, 0, va, t, pos + t)
        if split:
            tops = T.sblock_alloc_buffer((kv_heads * most * row_tiles * queries,), "float32", scope="global")
            totals = T.sblock_alloc_buffer((kv_heads * most * row_tiles * queries, lanes), "float32", scope="global")
            outs = T.sblock_alloc_buffer((kv_heads * most * row_tiles * queries, head_dim), "float32", scope="global")
            lowest = T.bind(first_chunk(pos))
            chunks = T.bind((pos + n - 1) // CHUNK + 1 - lowest)
            for p in T.parallel(kv_heads * groups * chunks):
                with T.sblock("chunk"):
                    vp = T.axis.spatial(kv_heads * groups * most, p)
                    vh = T.meta_var(vp // chunks // groups)
                    vg = T.meta_var(vp // chunks % groups)
                    vc = T.meta_var(vp % chunks)
                    if groups == 1:
                        for t in T.serial(n):
                            if (pos + t) // CHUNK == lowest + vc:
                                append(k, v, keys, values, 0, vh, t, pos + t)
                    for r in T.serial(own):
                        first = T.meta_var((r * groups + vg) * rows)
                        if sees(pos + first, lowest + vc):
                            chunk(
                                *(q, keys, values, 0, vh, first, pos + first, lowest + vc, tops, totals, outs),
                                ((vh * chunks + vc) * row_tiles + r * groups + vg) * queries,
                            )
            for p in T.serial(kv_heads * row_tiles):
                with T.sblock("join"):
                    vp = T.axis.spatial(kv_heads * row_tiles, p)
                    factor = T.sblock_alloc_buffer((2,), "float32", scope="local")
                    vh = T.meta_var(vp // row_tiles)
                    vr = T.meta_var(vp % row_tiles)
                    begin = T.meta_var(first_chunk(pos + vr * rows) - lowest)
                    end = T.meta_var((pos + vr * rows + rows - 1) // CHUNK - lowest)
                    to = T.meta_var(((vh * chunks + begin) * row_tiles + vr) * queries)
                    for c in T.serial(end - begin):
                        add(tops, totals, outs, to, to + (c + 1) * row_tiles * queries, factor)
                    store(tops, totals, outs, to, y, vh, vr * rows)
        else:
            for p in T.parallel(kv_heads * groups):
                with T.sblock("rows"):
                    vp = T.axis.spatial(kv_heads * groups, p)
                    tops = T.sblock_alloc_buffer(((own + 1) * queries,), "float32", scope="local")
                    totals = T.sblock_alloc_buffer(((own + 1) * queries, lanes), "float32", scope="local")
                    outs = T.sblock_alloc_buffer(((own + 1) * queries, head_dim), "float32", scope="local")
                    factor = T.sblock_alloc_buffer((2,), "float32", scope="local")
                    vh = T.meta_var(vp // groups)
                    vg = T.meta_var(vp % groups)
                    if groups == 1:
                        for t in T.serial(n):
                            append(k, v, keys, values, 0, vh, t, pos + t)
                    lowest = T.meta_var(first_chunk(pos) if most > 1 else T.int64(0))
                    for c in T.serial((pos + n - 1) // CHUNK + 1 - lowest if most > 1 else 1):
                        for r in T.serial(own):
                            # early and late tiles take turns: tasks are equal work
                            first = T.meta_var((r * groups + vg) * rows)
                            if most == 1:
                                chunk(
                                    *(q, keys, values, 0, vh, first, pos + first, T.int64(0), tops, totals, outs),
                                    r * queries,
                                )
                            elif sees(pos + first, c + lowest):
                                chunk(
                                    *(q, keys, values, 0, vh, first, pos + first, c + lowest, tops, totals, outs),
                                    T.Select(c + lowest > first_chunk(pos + first), own, r) * queries,
                                )
                                if c + lowest > first_chunk(pos + first):
                                    add(tops, totals, outs, r * queries, own * queries, factor)
                    for r in T.serial(own):
                        store(tops, totals, outs, r * queries, y, vh, (r * groups + vg) * rows)

    return attention_cached
