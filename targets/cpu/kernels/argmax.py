"""Greedy choice on the device: the head's logits become token ids; equal logits give the lowest id."""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile


@functools.cache
def argmax(tile: CpuTile, n: int, vocab: int) -> Any:
    """The PrimFunc (logits[1, n, vocab], ids[1, n] int64): the maximum over lanes, then the lowest id that has it.

    A row with a logit that is NaN or infinite gets id -1. Without its sign bit, a float32 that is not finite is an
    integer of at least 0x7F800000, so the largest of these integers tells; it is found beside the maximum, from the
    same loads, and does not depend on how a compiler orders comparisons with NaN.
    """
    lanes = tile.lanes
    full = vocab // lanes

    @T.prim_func(s_tir=True)
    def argmax(logits: T.Buffer((1, n, vocab), "float32"), ids: T.Buffer((1, n), "int64")):
        T.func_attr({"tirx.noalias": True})
        for m in T.serial(n):
            with T.sblock("row"):
                vm = T.axis.spatial(n, m)
                best = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                magnitudes = T.sblock_alloc_buffer((lanes,), "int32", scope="local")
                top = T.sblock_alloc_buffer((1,), "float32", scope="local")
                places = T.sblock_alloc_buffer((lanes,), "int32", scope="local")
                place = T.sblock_alloc_buffer((1,), "int32", scope="local")
                magnitude = T.sblock_alloc_buffer((1,), "int32", scope="local")
                for v in T.vectorized(lanes):
                    best[v] = T.min_value("float32")
                    magnitudes[v] = 0
                for i in T.serial(full):
                    for v in T.vectorized(lanes):
                        best[v] = T.max(best[v], logits[0, vm, i * lanes + v])
                        magnitudes[v] = T.max(
                            magnitudes[v], T.reinterpret("int32", logits[0, vm, i * lanes + v]) & T.int32(0x7FFFFFFF)
                        )
                top[0] = T.min_value("float32")
                magnitude[0] = 0
                for v in T.serial(lanes):
                    top[0] = T.max(top[0], best[v])
                    magnitude[0] = T.max(magnitude[0], magnitudes[v])
                for i in T.serial(vocab - full * lanes):
                    top[0] = T.max(top[0], logits[0, vm, full * lanes + i])
                    magnitude[0] = T.max(
                        magnitude[0], T.reinterpret("int32", logits[0, vm, full * lanes + i]) & T.int32(0x7FFFFFFF)
                    )
                for v in T.vectorized(lanes):
                    places[v] = vocab
                for i in T.serial(full):
                    for v in T.vectorized(lanes):
                        places[v] = T.min(
                            places[v], T.Select(logits[0, vm, i * lanes + v] == top[0], i * lanes + v, vocab)
                        )
                place[0] = vocab
                for v in T.serial(lanes):
                    place[0] = T.min(place[0], places[v])
                for i in T.serial(vocab - full * lanes):
                    if logits[0, vm, full * lanes + i] == top[0]:
                        place[0] = T.min(place[0], full * lanes + i)
                if magnitude[0] >= T.int32(0x7F800000):
                    place[0] = -1
                ids[0, vm] = T.Cast("int64", place[0])

    return argmax
