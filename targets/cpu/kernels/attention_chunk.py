"""Attention of a tile of rows over one chunk of keys: its part of the softmax and of the weighted sum of values.

Chunks begin at multiples of CHUNK keys, whatever row sees them. Keys and values are read once for all queries of a
tile, which are the rows times the heads that share the KV head. Every query adds in the same order whatever tile it is
in: scores over head_dim, values over the keys of a chunk upward. Of the keys that only some rows of a tile see, values
are added row by row.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from targets.cpu.kernels.kv_cache import KvCache
from targets.cpu.tile import CHUNK, AttentionTile, CpuTile
from targets.kernels.vector_math import lanes_exp, lanes_tanh, of_head

_BLOCK = 64  # keys whose values are added to all of head_dim before the next ones: they stay in the level-1 cache
NOTHING = -3e38  # the peak of scores of which there are none


def attention_chunk(
    tile: CpuTile,
    cut: AttentionTile,
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    scale: float,
    window: int,
    softcap: float,
    slopes: tuple[float, ...],
    stored: KvCache,
) -> Any:
    """A macro (q, keys, values, slot, head, first, position, chunk, tops, totals, outs, at); see `attention_parts`.

    For each query of the tile, whose rows are at `position` and after it, a row from `at` on: of tops the largest score
    of the chunk, of totals the sum of exp(score - top) in lanes, of outs the sum of the values with these weights;
    NOTHING and zeros where the query sees no key of the chunk. In a block of its own.
    """
    lanes, share, part = tile.lanes, heads // kv_heads, tile.vector(head_dim)
    vectors, tiles = head_dim // part, context // lanes
    unroll = next(u for u in (8, 4, 2, 1) if head_dim % u == 0)
    cap = softcap if softcap > 0 else 1.0
    biased = len(slopes) > 0
    rows, side, wide = cut.rows, cut.key_vectors, cut.value_vectors
    queries = rows * share
    room = min(CHUNK, context) + side * lanes
    number, key_scales, value_scales = stored.number, stored.key_scales, stored.value_scales

    def seen(key: Any, position: Any, end: Any) -> Any:
        """Whether a row at `position` sees a key of a chunk that ends before `end`."""
        upto = key <= T.min(position, end - 1)
        return T.And(upto, key >= position + 1 - window) if window > 0 else upto

    def largest(x: Any) -> Any:
        return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id("llvm.vector.reduce.fmax"), x, dtype="float32")

    @T.inline
    def chunk_of(q, keys, values, slot, head, first, position, chunk, tops, totals, outs, at):  # type: ignore[no-untyped-def]
        score = T.sblock_alloc_buffer((queries, room), "float32", scope="global")
        dot = T.sblock_alloc_buffer((queries, side * lanes), "float32", scope="local")
        peak = T.sblock_alloc_buffer((queries, lanes), "float32", scope="local")
        slope = T.sblock_alloc_buffer((queries,), "float32", scope="local")
        # keys of the chunk: those that a row of the tile sees, and of these those that all rows see
        begin = T.meta_var(T.max(position + 1 - window, chunk * CHUNK) if window > 0 else chunk * CHUNK)
        end = T.meta_var(T.min(position + rows, (chunk + 1) * CHUNK))
        all_begin = T.meta_var(T.min(T.max(position + rows - window, begin), end) if window > 0 else begin)
        all_end = T.meta_var(T.max(T.min(position + 1, end), all_begin))
        origin = T.meta_var(begin // lanes)  # the key tile of the first score
        groups = T.meta_var((end - 1) // lanes - origin + side)
        for m in T.unroll(queries):
            for i in T.vectorized(lanes):
                peak[m, i] = T.float32(NOTHING)
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
                            seen((origin + s * side + j) * lanes + i, position + m // share, end),
                            dot[m, j * lanes + i],
                            T.float32(NOTHING),
                        )
                    for i in T.vectorized(lanes):
                        peak[m, i] = T.max(peak[m, i], score[m, (s * side + j) * lanes + i])
        for m in T.unroll(queries):
            tops[at + m] = largest(peak[m, T.Ramp(0, 1, lanes)])
            for i in T.vectorized(lanes):
                totals[at + m, i] = T.float32(0)
            for d in T.unroll(vectors):
                for i in T.vectorized(part):
                    outs[at + m, d * part + i] = T.float32(0)
        for s in T.serial((end - 1) // lanes - origin + 1):
            for m in T.unroll(queries):
                for i in T.vectorized(lanes):
                    score[m, s * lanes + i] = T.Select(
                        score[m, s * lanes + i] > T.float32(-2e38),
                        lanes_exp(score[m, s * lanes + i] - tops[at + m]),
                        T.float32(0),
                    )
                for i in T.vectorized(lanes):
                    totals[at + m, i] = totals[at + m, i] + score[m, s * lanes + i]
                if value_scales is not None:
                    score[m, T.Ramp(s * lanes, 1, lanes)] = score[m, T.Ramp(s * lanes, 1, lanes)] * value_scales(
                        keys, slot, head, origin + s
                    )
        if window > 0 and rows > 1:
            for m in T.serial(queries):
                own = T.meta_var(T.max(position + m // share + 1 - window, begin))  # the first key that the row sees
                for s in T.serial(T.max(T.min(all_begin, position + m // share + 1) - own, T.int64(0))):
                    for d in T.unroll(vectors):
                        for i in T.vectorized(part):
                            outs[at + m, d * part + i] = T.fma(
                                score[m, own - origin * lanes + s],
                                number(values[slot, head, own + s, d * part + i]),
                                outs[at + m, d * part + i],
                            )
        for b in T.serial((all_end - all_begin + _BLOCK - 1) // _BLOCK):
            for dg in T.serial(vectors // wide):
                for s in T.serial(T.min(T.int64(_BLOCK), all_end - all_begin - b * _BLOCK)):
                    for m in T.unroll(queries):
                        for j in T.unroll(wide):
                            for i in T.vectorized(part):
                                outs[at + m, (dg * wide + j) * part + i] = T.fma(
                                    score[m, all_begin - origin * lanes + b * _BLOCK + s],
                                    number(values[slot, head, all_begin + b * _BLOCK + s, (dg * wide + j) * part + i]),
                                    outs[at + m, (dg * wide + j) * part + i],
                                )
        if rows > 1:
            for m in T.serial(queries):
                for s in T.serial(T.max(T.min(position + m // share + 1, end) - all_end, T.int64(0))):
                    for d in T.unroll(vectors):
                        for i in T.vectorized(part):
                            outs[at + m, d * part + i] = T.fma(
                                score[m, all_end - origin * lanes + s],
                                number(values[slot, head, all_end + s, d * part + i]),
                                outs[at + m, d * part + i],
                            )

    return chunk_of
