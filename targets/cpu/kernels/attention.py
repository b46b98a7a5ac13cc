"""Attention over the in-place KV cache: one kernel appends the new rows and attends.

Appending and attending are one PrimFunc on purpose: TVM deletes an in-place write whose result is not used.

Cache layout, per KV head: keys [context / lanes, head_dim, lanes] (keys in lanes, so a dot product needs no
horizontal sum), values [context, head_dim]. Row t of the new tokens attends to keys 0 .. pos + t (or the last
`window` of them) and to nothing else, so its bits do not depend on n, and stale rows beyond are never read into a
result. The caller checks pos + n <= context.

A task is a KV head and a tile of rows: keys and values are read once for all its queries, which are the rows times the
heads that share the KV head. Every query adds in the same order whatever tile it is in: scores over head_dim, values
over the keys upward. Of the keys that only some rows of a tile see, values are added row by row.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile
from targets.kernels.vector_math import lanes_exp, lanes_tanh, value_with_key

_BLOCK = 64  # keys whose values are added to all of head_dim before the next ones: they stay in the level-1 cache


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
) -> Any:
    """The PrimFunc (q, k, v, key cache, value cache, pos, y); q, y [1, n, heads * head_dim], k, v with kv_heads.

    window 0 means none: row t sees key j iff j <= pos + t, and j > pos + t - window where there is one. softcap c
    > 0 replaces a score s by c * tanh(s / c). context must be a multiple of the lanes. `cache` is the type in which
    keys and values are stored, float32 or float16: a row attends to the stored ones, its own among them.
    """
    lanes, share, part = tile.lanes, heads // kv_heads, tile.vector(head_dim)
    vectors, tiles = head_dim // part, context // lanes
    reach = window if window > 0 else context
    unroll = next(u for u in (8, 4, 2, 1) if head_dim % u == 0)
    cap = softcap if softcap > 0 else 1.0
    cut = tile.attention(n, share, vectors)
    rows, side, wide = cut.rows, cut.key_vectors, cut.value_vectors
    queries, row_tiles = rows * share, n // cut.rows
    room = context + side * lanes

    def stored(value: Any) -> Any:
        """A float32 value as the caches have it."""
        return T.Cast(cache, value) if cache != "float32" else value

    def stored_value(v: Any, k: Any, row: Any, column: Any) -> Any:
        """The same of a value, which shows what became of its key."""
        value = v[0, row, column]
        return stored(value_with_key(value, k[0, row, column])) if cache == "float16" else value

    def read(value: Any) -> Any:
        """A value of the caches as float32."""
        return T.Cast("float32", value) if cache != "float32" else value

    @T.prim_func(s_tir=True)
    def attention_cached(
        q: T.Buffer((1, n, heads * head_dim), "float32"),
        k: T.Buffer((1, n, kv_heads * head_dim), "float32"),
        v: T.Buffer((1, n, kv_heads * head_dim), "float32"),
        keys: T.Buffer((1, kv_heads, tiles, head_dim, lanes), cache),
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
                        for d in T.serial(head_dim):
                            keys[0, va, (pos + t) // lanes, d, (pos + t) % lanes] = stored(k[0, t, va * head_dim + d])
                        for d in T.unroll(vectors):
                            for i in T.vectorized(part):
                                values[0, va, pos + t, d * part + i] = stored_value(
                                    v, k, t, va * head_dim + d * part + i
                                )
        for p in T.parallel(kv_heads * row_tiles):
            with T.sblock("tile"):
                vp = T.axis.spatial(kv_heads * row_tiles, p)
                vh = T.meta_var(vp // row_tiles)
                # early and late tiles alternate: equal shares of the tasks are equal work
                nth = T.meta_var(vp % row_tiles)
                first = T.meta_var((nth // 2 + nth % 2 * (row_tiles - 1 - nth // 2 * 2)) * rows)
                score = T.sblock_alloc_buffer((queries, room), "float32", scope="global")
                dot = T.sblock_alloc_buffer((queries, side * lanes), "float32", scope="local")
                peak = T.sblock_alloc_buffer((queries, lanes), "float32", scope="local")
                total = T.sblock_alloc_buffer((queries, lanes), "float32", scope="local")
                top = T.sblock_alloc_buffer((queries,), "float32", scope="local")
                out = T.sblock_alloc_buffer((queries, head_dim), "float32", scope="local")
                # keys of the tile's rows: first and last, and those that all rows see
                begin = T.meta_var(T.max(pos + first + 1 - reach, T.int64(0)))
                end = T.meta_var(pos + first + rows)
                all_begin = T.meta_var(T.max(pos + first + rows - reach, T.int64(0)))
                all_end = T.meta_var(T.max(all_begin, pos + first + 1))
                origin = T.meta_var(begin // lanes)  # the key tile of the first score
                groups = T.meta_var((end - 1) // lanes - origin + side)
                if row_tiles == 1:
                    for t in T.serial(n):
                        for d in T.serial(head_dim):
                            keys[0, vh, (pos + t) // lanes, d, (pos + t) % lanes] = stored(k[0, t, vh * head_dim + d])
                        for d in T.unroll(vectors):
                            for i in T.vectorized(part):
                                values[0, vh, pos + t, d * part + i] = stored_value(
                                    v, k, t, vh * head_dim + d * part + i
                                )
                for m in T.unroll(queries):
                    for i in T.vectorized(lanes):
                        peak[m, i] = T.float32(-3e38)
                for s in T.serial(groups // side):
                    for m in T.unroll(queries):
                        for j in T.unroll(side):
                            for i in T.vectorized(lanes):
                                dot[m, j * lanes + i] = T.float32(0)
                    for do in T.serial(head_dim // unroll):
                        for di in T.unroll(unroll):
                            for m in T.unroll(queries):
                                for j in T.unroll(side):
                                    for i in T.vectorized(lanes):
                                        dot[m, j * lanes + i] = T.fma(
                                            q[
                                                0,
                                                first + m // share,
                                                (vh * share + m % share) * head_dim + do * unroll + di,
                                            ],
                                            read(
                                                keys[
                                                    0,
                                                    vh,
                                                    T.min(origin + s * side + j, tiles - 1),
                                                    do * unroll + di,
                                                    i,
                                                ]
                                            ),
                                            dot[m, j * lanes + i],
                                        )
                    for m in T.unroll(queries):
                        for j in T.unroll(side):
                            for i in T.vectorized(lanes):
                                dot[m, j * lanes + i] = dot[m, j * lanes + i] * T.float32(scale)
                            if softcap > 0:
                                for i in T.vectorized(lanes):
                                    dot[m, j * lanes + i] = T.float32(cap) * lanes_tanh(
                                        dot[m, j * lanes + i] * T.float32(1.0 / cap)
                                    )
                            for i in T.vectorized(lanes):
                                score[m, (s * side + j) * lanes + i] = T.Select(
                                    T.And(
                                        (origin + s * side + j) * lanes + i <= pos + first + m // share,
                                        (origin + s * side + j) * lanes + i >= pos + first + m // share + 1 - reach,
                                    ),
                                    dot[m, j * lanes + i],
                                    T.float32(-3e38),
                                )
                            for i in T.vectorized(lanes):
                                peak[m, i] = T.max(peak[m, i], score[m, (s * side + j) * lanes + i])
                for m in T.unroll(queries):
                    top[m] = peak[m, 0]
                    for i in T.unroll(lanes):
                        top[m] = T.max(top[m], peak[m, i])
                    for i in T.vectorized(lanes):
                        total[m, i] = T.float32(0)
                    for d in T.unroll(vectors):
                        for i in T.vectorized(part):
                            out[m, d * part + i] = T.float32(0)
                for s in T.serial((end - 1) // lanes - origin + 1):
                    for m in T.unroll(queries):
                        for i in T.vectorized(lanes):
                            score[m, s * lanes + i] = T.Select(
                                score[m, s * lanes + i] > T.float32(-2e38),
                                lanes_exp(score[m, s * lanes + i] - top[m]),
                                T.float32(0),
                            )
                        for i in T.vectorized(lanes):
                            total[m, i] = total[m, i] + score[m, s * lanes + i]
                for m in T.unroll(queries):
                    top[m] = T.float32(0)
                    for i in T.unroll(lanes):
                        top[m] = top[m] + total[m, i]
                if window > 0 and rows > 1:
                    for m in T.serial(queries):
                        for s in T.serial(
                            T.min(all_begin, pos + first + m // share + 1)
                            - T.max(pos + first + m // share + 1 - reach, T.int64(0))
                        ):
                            for d in T.unroll(vectors):
                                for i in T.vectorized(part):
                                    out[m, d * part + i] = T.fma(
                                        score[
                                            m,
                                            T.max(pos + first + m // share + 1 - reach, T.int64(0))
                                            - origin * lanes
                                            + s,
                                        ],
                                        read(
                                            values[
                                                0,
                                                vh,
                                                T.max(pos + first + m // share + 1 - reach, T.int64(0)) + s,
                                                d * part + i,
                                            ]
                                        ),
                                        out[m, d * part + i],
                                    )
                for b in T.serial((all_end - all_begin + _BLOCK - 1) // _BLOCK):
                    for dg in T.serial(vectors // wide):
                        for s in T.serial(T.min(T.int64(_BLOCK), all_end - all_begin - b * _BLOCK)):
                            for m in T.unroll(queries):
                                for j in T.unroll(wide):
                                    for i in T.vectorized(part):
                                        out[m, (dg * wide + j) * part + i] = T.fma(
                                            score[m, all_begin - origin * lanes + b * _BLOCK + s],
                                            read(values[0, vh, all_begin + b * _BLOCK + s, (dg * wide + j) * part + i]),
                                            out[m, (dg * wide + j) * part + i],
                                        )
                if rows > 1:
                    for m in T.serial(queries):
                        for s in T.serial(pos + first + m // share + 1 - all_end):
                            for d in T.unroll(vectors):
                                for i in T.vectorized(part):
                                    out[m, d * part + i] = T.fma(
                                        score[m, all_end - origin * lanes + s],
                                        read(values[0, vh, all_end + s, d * part + i]),
                                        out[m, d * part + i],
                                    )
                for m in T.unroll(queries):
                    for d in T.unroll(vectors):
                        for i in T.vectorized(part):
                            y[0, first + m // share, (vh * share + m % share) * head_dim + d * part + i] = (
                                out[m, d * part + i] / top[m]
                            )

    return attention_cached
