"""What the attention kernels have in common: storing a new row's keys and values, and attending with a tile of rows.

The caches are laid out as kv_cache.py says. A row at a position attends to the keys up to it (or the last `window` of
them) and to nothing else, so its bits do not depend on n, and stale rows beyond are never read into a result.

Keys and values are read once for all queries of a tile, which are the rows times the heads that share the KV head.
Every query adds in the same order whatever tile it is in: scores over head_dim, values over the keys upward. Of the
keys that only some rows of a tile see, values are added row by row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from targets.cpu.kernels.kv_cache import kv_cache
from targets.cpu.tile import AttentionTile, CpuTile
from targets.kernels.vector_math import lanes_exp, lanes_tanh, of_head

_BLOCK = 64  # keys whose values are added to all of head_dim before the next ones: they stay in the level-1 cache


@dataclass(frozen=True)
class AttentionParts:
    """Macros of the attention kernels.

    Attributes:
        append: (k, v, keys, values, slot, head, row, position): store row `row` of k and v.
        attend: (q, keys, values, y, slot, head, first, position): of the tile's rows from `first` on, the first of
            which is at `position`; in a block of its own.
    """

    append: Any
    attend: Any


def attention_parts(
    tile: CpuTile,
    cut: AttentionTile,
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    scale: float,
    window: int,
    softcap: float,
    cache: str,
    slopes: tuple[float, ...],
) -> AttentionParts:
    """The macros for a tile of rows that `CpuTile.attention` cut.

    window 0 means none: a row at position p sees key j iff j <= p, and j > p - window where there is one. softcap c
    > 0 replaces a score s by c * tanh(s / c). context must be a multiple of the lanes. `cache` is the type in which
    keys and values are stored, a name of KV_FORMATS: a row attends to the stored ones, its own among them.
    `slopes`, one a head: ALiBi adds the head's to a score times (key - row), which is never positive.
    """
    lanes, share, part = tile.lanes, heads // kv_heads, tile.vector(head_dim)
    vectors, tiles = head_dim // part, context // lanes
    reach = window if window > 0 else context
    unroll = next(u for u in (8, 4, 2, 1) if head_dim % u == 0)
    cap = softcap if softcap > 0 else 1.0
    biased = len(slopes) > 0
    rows, side, wide = cut.rows, cut.key_vectors, cut.value_vectors
    queries = rows * share
    room = context + side * lanes
    stored = kv_cache(tile, head_dim, cache)
    number, key_scales, value_scales = stored.number, stored.key_scales, stored.value_scales

    @T.inline
    def attend(q, keys, values, y, slot, head, first, position):  # type: ignore[no-untyped-def]
        score = T.sblock_alloc_buffer((queries, room), "float32", scope="global")
        dot = T.sblock_alloc_buffer((queries, side * lanes), "float32", scope="local")
        peak = T.sblock_alloc_buffer((queries, lanes), "float32", scope="local")
        total = T.sblock_alloc_buffer((queries, lanes), "float32", scope="local")
        top = T.sblock_alloc_buffer((queries,), "float32", scope="local")
        out = T.sblock_alloc_buffer((queries, head_dim), "float32", scope="local")
        slope = T.sblock_alloc_buffer((queries,), "float32", scope="local")
        # keys of the tile's rows: first and last, and those that all rows see
        begin = T.meta_var(T.max(position + 1 - reach, T.int64(0)))
        end = T.meta_var(position + rows)
        all_begin = T.meta_var(T.max(position + rows - reach, T.int64(0)))
        all_end = T.meta_var(T.max(all_begin, position + 1))
        origin = T.meta_var(begin // lanes)  # the key tile of the first score
        groups = T.meta_var((end - 1) // lanes - origin + side)
        for m in T.unroll(queries):
            for i in T.vectorized(lanes):
                peak[m, i] = T.float32(-3e38)
            if biased:
                slope[m] = of_head(slopes, head * share + m % share)
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
                                        (head * share + m % share) * head_dim + do * unroll + di,
                                    ],
                                    number(
                                        keys[
                                            slot,
                                            head,
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
                    if key_scales is not None:
                        dot[m, T.Ramp(j * lanes, 1, lanes)] = dot[m, T.Ramp(j * lanes, 1, lanes)] * key_scales(
                            keys, slot, head, T.min(origin + s * side + j, tiles - 1)
                        )
                    if softcap > 0:
                        for i in T.vectorized(lanes):
                            dot[m, j * lanes + i] = T.float32(cap) * lanes_tanh(
                                dot[m, j * lanes + i] * T.float32(1.0 / cap)
                            )
                    if biased:
                        for i in T.vectorized(lanes):
                            dot[m, j * lanes + i] = T.fma(
                                slope[m],
                                T.Cast("float32", (origin + s * side + j) * lanes - position - m // share)
                                + T.Cast("float32", i),
                                dot[m, j * lanes + i],
                            )
                    for i in T.vectorized(lanes):
                        score[m, (s * side + j) * lanes + i] = T.Select(
                            T.And(
                                (origin + s * side + j) * lanes + i <= position + m // share,
                                (origin + s * side + j) * lanes + i >= position + m // share + 1 - reach,
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
                if value_scales is not None:
                    score[m, T.Ramp(s * lanes, 1, lanes)] = score[m, T.Ramp(s * lanes, 1, lanes)] * value_scales(
                        keys, slot, head, origin + s
                    )
        for m in T.unroll(queries):
            top[m] = T.float32(0)
            for i in T.unroll(lanes):
                top[m] = top[m] + total[m, i]
        if window > 0 and rows > 1:
            for m in T.serial(queries):
                for s in T.serial(
                    T.min(all_begin, position + m // share + 1) - T.max(position + m // share + 1 - reach, T.int64(0))
                ):
                    for d in T.unroll(vectors):
                        for i in T.vectorized(part):
                            out[m, d * part + i] = T.fma(
                                score[
                                    m,
                                    T.max(position + m // share + 1 - reach, T.int64(0)) - origin * lanes + s,
                                ],
                                number(
                                    values[
                                        slot,
                                        head,
                                        T.max(position + m // share + 1 - reach, T.int64(0)) + s,
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
                                    number(values[slot, head, all_begin + b * _BLOCK + s, (dg * wide + j) * part + i]),
                                    out[m, (dg * wide + j) * part + i],
                                )
        if rows > 1:
            for m in T.serial(queries):
                for s in T.serial(position + m // share + 1 - all_end):
                    for d in T.unroll(vectors):
                        for i in T.vectorized(part):
                            out[m, d * part + i] = T.fma(
                                score[m, all_end - origin * lanes + s],
                                number(values[slot, head, all_end + s, d * part + i]),
                                out[m, d * part + i],
                            )
        for m in T.unroll(queries):
            for d in T.unroll(vectors):
                for i in T.vectorized(part):
                    y[0, first + m // share, (head * share + m % share) * head_dim + d * part + i] = (
                        out[m, d * part + i] / top[m]
                    )

    return AttentionParts(stored.append, attend)
