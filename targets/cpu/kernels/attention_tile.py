"""What the attention kernels have in common: storing a new row's keys and values, and attending with a tile of rows.

A row at a position attends to the keys up to it (or the last `window` of them) and to nothing else, chunk by chunk
(attention_chunk.py). What chunks have found is joined in one order, from the first that the row sees upward, whether
one task computes all of them or each has a task of its own: a row's bits depend neither on n nor on the number of
threads, and stale rows are never read into a result. The caches are laid out as kv_cache.py says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from targets.cpu.kernels.attention_chunk import NOTHING, attention_chunk
from targets.cpu.kernels.kv_cache import kv_cache
from targets.cpu.tile import CHUNK, AttentionTile, CpuTile
from targets.kernels.vector_math import lanes_exp


@dataclass(frozen=True)
class AttentionParts:
    """Macros of the attention kernels; a tile has rows from `first` on, the first of which is at `position`.

    A query's part of an answer is a row of `tops`, `totals` and `outs` (attention_chunk.py).

    Attributes:
        append: (k, v, keys, values, slot, head, row, position): store row `row` of k and v.
        chunk: (q, keys, values, slot, head, first, position, chunk, tops, totals, outs, at): what a tile, some row of
            which sees the chunk, finds there, in rows from `at` on; in a block of its own.
        add: (tops, totals, outs, to, at, factor): join the parts from row `at` on to those from row `to` on, which are
            of chunks before; `factor` is scratch for two numbers.
        store: (tops, totals, outs, at, y, head, first): the answer of a tile whose parts are all joined.
        first_chunk: (position) -> the first chunk that a row there sees.
        queries: rows that a tile takes.
    """

    append: Any
    chunk: Any
    add: Any
    store: Any
    first_chunk: Callable[[Any], Any]
    queries: int


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
    vectors, queries = head_dim // part, cut.rows * share
    stored = kv_cache(tile, head_dim, cache)
    sizes = heads, kv_heads, head_dim, context, scale, window, softcap, slopes
    chunk_of = attention_chunk(tile, cut, *sizes, stored)

    def first_chunk(position: Any) -> Any:
        return T.max(position + 1 - window, T.int64(0)) // CHUNK if window > 0 else T.int64(0)

    @T.inline
    def add(tops, totals, outs, to, at, factor):  # type: ignore[no-untyped-def]
        """Both parts are scaled to the larger peak, one of them by 1; a part without keys changes nothing."""
        for m in T.serial(queries):
            if tops[at + m] > T.float32(0.5 * NOTHING):
                factor[0] = lanes_exp(T.min(tops[to + m] - tops[at + m], tops[at + m] - tops[to + m]))
                factor[1] = T.Select(tops[at + m] > tops[to + m], T.float32(1), factor[0])
                factor[0] = T.Select(tops[at + m] > tops[to + m], factor[0], T.float32(1))
                tops[to + m] = T.max(tops[to + m], tops[at + m])
                for i in T.vectorized(lanes):
                    totals[to + m, i] = T.fma(totals[at + m, i], factor[1], totals[to + m, i] * factor[0])
                for d in T.unroll(vectors):
                    for i in T.vectorized(part):
                        outs[to + m, d * part + i] = T.fma(
                            outs[at + m, d * part + i], factor[1], outs[to + m, d * part + i] * factor[0]
                        )

    @T.inline
    def store(tops, totals, outs, at, y, head, first):  # type: ignore[no-untyped-def]
        for m in T.serial(queries):
            tops[at + m] = T.float32(0)
            for i in T.unroll(lanes):
                tops[at + m] = tops[at + m] + totals[at + m, i]
            for d in T.unroll(vectors):
                for i in T.vectorized(part):
                    y[0, first + m // share, (head * share + m % share) * head_dim + d * part + i] = (
                        outs[at + m, d * part + i] / tops[at + m]
                    )

    return AttentionParts(stored.append, chunk_of, add, store, first_chunk, queries)
