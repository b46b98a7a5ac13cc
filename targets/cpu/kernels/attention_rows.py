"""Attention of rows that are each at a position of a slot of their own: rows of several sequences in one call.

All rows are stored first, so that rows of one sequence see the keys of those before them; then a task is a row, a KV
head and a chunk of keys, and the calling thread joins what the chunks have found. A row has the bits that attention.py
gives it. The caller checks that slots and positions are within the caches; two rows at one place are the same row.
A task binds its slot, head and position before its loops: LLVM cannot know that writing there does not change them.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from targets.cpu.kernels.attention_tile import attention_parts
from targets.cpu.tile import CHUNK, CpuTile
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
    append, chunk, add, store = parts.append, parts.chunk, parts.add, parts.store
    first_chunk, queries = parts.first_chunk, parts.queries
    tasks, most = kv_heads * n, -(-context // CHUNK)

    def chunks(pos: Any) -> Any:
        """The most chunks that a row sees."""
        counts = [pos[t] // CHUNK + 1 - first_chunk(pos[t]) for t in range(n)]
        return functools.reduce(tirx.max, counts) if most > 1 else T.int64(1)

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
            for t in T.serial(n):
                to_slot = T.bind(slot[t])
                to_position = T.bind(pos[t])
                with T.sblock("append"):
                    vh, vt = T.axis.remap("SS", [h, t])
                    append(k, v, keys, values, to_slot, vh, vt, to_position)
        tops = T.sblock_alloc_buffer((tasks * most * queries,), "float32", scope="global")
        totals = T.sblock_alloc_buffer((tasks * most * queries, lanes), "float32", scope="global")
        outs = T.sblock_alloc_buffer((tasks * most * queries, head_dim), "float32", scope="global")
        for p in T.parallel(tasks * chunks(pos)):
            each = T.bind(chunks(pos))
            head = T.bind(p // each // n)
            row = T.bind(p // each % n)
            of_slot = T.bind(slot[row])
            position = T.bind(pos[row])
            c = T.bind(first_chunk(position) + p % each)
            with T.sblock("chunk"):
                vp = T.axis.spatial(tasks * most, p)
                if c * CHUNK <= position:
                    chunk(q, keys, values, of_slot, head, row, position, c, tops, totals, outs, vp * queries)
        for p in T.serial(tasks):
            to = T.bind(p * chunks(pos) * queries)
            own = T.bind(pos[p % n] // CHUNK - first_chunk(pos[p % n]))
            with T.sblock("join"):
                vp = T.axis.spatial(tasks, p)
                factor = T.sblock_alloc_buffer((2,), "float32", scope="local")
                for c in T.serial(own):
                    add(tops, totals, outs, to, to + (c + 1) * queries, factor)
                store(tops, totals, outs, to, y, vp // n, vp % n)

    return attention_rows
