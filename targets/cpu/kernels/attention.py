"""Attention over the in-place KV cache: one kernel appends the new rows and attends.

Appending and attending are one PrimFunc on purpose: TVM deletes an in-place write whose result is not used.

Cache layout, per KV head: keys [context / lanes, head_dim, lanes] (keys in lanes, so a dot product needs no
horizontal sum), values [context, head_dim]. Row t of the new tokens attends to keys 0 .. pos + t (or the last
`window` of them) and to nothing else, so its bits do not depend on n, and stale rows beyond are never read into a
result. The caller checks pos + n <= context.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile
from targets.kernels.vector_math import lanes_exp, lanes_tanh


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
) -> Any:
    """The PrimFunc (q, k, v, key cache, value cache, pos, y); q, y [1, n, heads * head_dim], k, v with kv_heads.

    window 0 means none: row t sees key j iff j <= pos + t, and j > pos + t - window where there is one. softcap c
    > 0 replaces a score s by c * tanh(s / c). context must be a multiple of the lanes.
    """
    lanes, share = tile.lanes, heads // kv_heads
    vectors, tiles = head_dim // lanes, context // lanes
    reach = window if window > 0 else context
    unroll = next(u for u in (8, 4, 2, 1) if head_dim % u == 0)
    cap = softcap if softcap > 0 else 1.0

    @T.prim_func(s_tir=True)
    def attention_cached(
        q: T.Buffer((1, n, heads * head_dim), "float32"),
        k: T.Buffer((1, n, kv_heads * head_dim), "float32"),
        v: T.Buffer((1, n, kv_heads * head_dim), "float32"),
        keys: T.Buffer((1, kv_heads, tiles, head_dim, lanes), "float32"),
        values: T.Buffer((1, kv_heads, context, head_dim), "float32"),
        pos: T.int64,
        y: T.Buffer((1, n, heads * head_dim), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for h in T.parallel(kv_heads):
            with T.sblock("head"):
                vh = T.axis.spatial(kv_heads, h)
                score = T.sblock_alloc_buffer((share, context), "float32", scope="global")
                dot = T.sblock_alloc_buffer((share, lanes), "float32", scope="local")
                peak = T.sblock_alloc_buffer((share, lanes), "float32", scope="local")
                total = T.sblock_alloc_buffer((share, lanes), "float32", scope="local")
                top = T.sblock_alloc_buffer((share,), "float32", scope="local")
                out = T.sblock_alloc_buffer((share, head_dim), "float32", scope="local")
                for t in T.serial(n):
                    for d in T.serial(head_dim):
                        keys[0, vh, (pos + t) // lanes, d, (pos + t) % lanes] = k[0, t, vh * head_dim + d]
                    for d in T.unroll(vectors):
                        for i in T.vectorized(lanes):
                            values[0, vh, pos + t, d * lanes + i] = v[0, t, vh * head_dim + d * lanes + i]
                for t in T.serial(n):
                    for g in T.unroll(share):
                        for i in T.vectorized(lanes):
                            peak[g, i] = T.float32(-3e38)
                    for s in T.serial((pos + t + lanes) // lanes - T.max(pos + t + 1 - reach, T.int64(0)) // lanes):
                        for g in T.unroll(share):
                            for i in T.vectorized(lanes):
                                dot[g, i] = T.float32(0)
                        for do in T.serial(head_dim // unroll):
                            for di in T.unroll(unroll):
                                for g in T.unroll(share):
                                    for i in T.vectorized(lanes):
                                        dot[g, i] = T.fma(
                                            q[0, t, (vh * share + g) * head_dim + do * unroll + di],
                                            keys[
                                                0,
                                                vh,
                                                T.max(pos + t + 1 - reach, T.int64(0)) // lanes + s,
                                                do * unroll + di,
                                                i,
                                            ],
                                            dot[g, i],
                                        )
                        for g in T.unroll(share):
                            for i in T.vectorized(lanes):
                                dot[g, i] = dot[g, i] * T.float32(scale)
                            if softcap > 0:
                                for i in T.vectorized(lanes):
                                    dot[g, i] = T.float32(cap) * lanes_tanh(dot[g, i] * T.float32(1.0 / cap))
                            for i in T.vectorized(lanes):
                                score[g, s * lanes + i] = T.Select(
                                    T.And(
                                        (T.max(pos + t + 1 - reach, T.int64(0)) // lanes + s) * lanes + i <= pos + t,
                                        (T.max(pos + t + 1 - reach, T.int64(0)) // lanes + s) * lanes + i
                                        >= pos + t + 1 - reach,
                                    ),
                                    dot[g, i],
                                    T.float32(-3e38),
                                )
                            for i in T.vectorized(lanes):
                                peak[g, i] = T.max(peak[g, i], score[g, s * lanes + i])
                    for g in T.unroll(share):
                        top[g] = peak[g, 0]
                        for i in T.unroll(lanes):
                            top[g] = T.max(top[g], peak[g, i])
                        for i in T.vectorized(lanes):
                            total[g, i] = T.float32(0)
                        for d in T.unroll(vectors):
                            for i in T.vectorized(lanes):
                                out[g, d * lanes + i] = T.float32(0)
                    for s in T.serial((pos + t + lanes) // lanes - T.max(pos + t + 1 - reach, T.int64(0)) // lanes):
                        for g in T.unroll(share):
                            for i in T.vectorized(lanes):
                                score[g, s * lanes + i] = T.Select(
                                    score[g, s * lanes + i] > T.float32(-2e38),
                                    lanes_exp(score[g, s * lanes + i] - top[g]),
                                    T.float32(0),
                                )
                            for i in T.vectorized(lanes):
                                total[g, i] = total[g, i] + score[g, s * lanes + i]
                    for g in T.unroll(share):
                        top[g] = T.float32(0)
                        for i in T.unroll(lanes):
                            top[g] = top[g] + total[g, i]
                    for s in T.serial(pos + t + 1 - T.max(pos + t + 1 - reach, T.int64(0))):
                        for d in T.unroll(vectors):
                            for g in T.unroll(share):
                                for i in T.vectorized(lanes):
                                    out[g, d * lanes + i] = T.fma(
                                        score[
                                            g,
                                            T.max(pos + t + 1 - reach, T.int64(0)) % lanes + s,
                                        ],
                                        values[
                                            0,
                                            vh,
                                            T.max(pos + t + 1 - reach, T.int64(0)) + s,
                                            d * lanes + i,
                                        ],
                                        out[g, d * lanes + i],
                                    )
                    for g in T.unroll(share):
                        for d in T.unroll(vectors):
                            for i in T.vectorized(lanes):
                                y[0, t, (vh * share + g) * head_dim + d * lanes + i] = out[g, d * lanes + i] / top[g]

    return attention_cached
