"""Greedy choice on the device: the head's logits become token ids; equal logits give the lowest id."""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.opencl.tile import GpuTile

PART = 256


def argmax_parts(vocab: int) -> int:
    """Candidates a row is first reduced to."""
    return -(-vocab // PART)


@functools.cache
def argmax(tile: GpuTile, n: int, vocab: int) -> Any:
    """The PrimFunc (logits[1, n, vocab], ids[1, n] int64, best, places[n, argmax_parts]).

    A row with a logit that is NaN or infinite gets id -1, and so does a part of it in `places`: without its sign bit, a
    float32 that is not finite is an integer of at least 0x7F800000, whatever a driver makes of comparisons with NaN.
    """
    size, parts = tile.group, argmax_parts(vocab)
    items = n * parts
    groups, row_groups = -(-items // size), -(-n // size)

    @T.prim_func(s_tir=True)
    def argmax(
        logits: T.Buffer((1, n, vocab), "float32"),
        ids: T.Buffer((1, n), "int64"),
        best: T.Buffer((n, parts), "float32"),
        places: T.Buffer((n, parts), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("part"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    top = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    where = T.sblock_alloc_buffer((1,), "int32", scope="local")
                    magnitude = T.sblock_alloc_buffer((1,), "int32", scope="local")
                    logit = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    top[0] = T.min_value("float32")
                    where[0] = vi % parts * PART
                    magnitude[0] = 0
                    for i in T.serial(T.min(PART, vocab - vi % parts * PART)):
                        logit[0] = logits[0, vi // parts, vi % parts * PART + i]
                        if logit[0] > top[0]:
                            top[0] = logit[0]
                            where[0] = vi % parts * PART + i
                        magnitude[0] = T.max(magnitude[0], T.reinterpret("int32", logit[0]) & T.int32(0x7FFFFFFF))
                    if magnitude[0] >= T.int32(0x7F800000):
                        where[0] = -1
                    best[vi // parts, vi % parts] = top[0]
                    places[vi // parts, vi % parts] = where[0]
        for g in T.thread_binding(row_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("row"):
                    vm = T.axis.spatial(n, g * size + t)
                    T.where(g * size + t < n)
                    top = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    where = T.sblock_alloc_buffer((1,), "int32", scope="local")
                    lost = T.sblock_alloc_buffer((1,), "int32", scope="local")
                    top[0] = T.min_value("float32")
                    where[0] = 0
                    lost[0] = 0
                    for i in T.serial(parts):
                        lost[0] = T.min(lost[0], places[vm, i])
                        if best[vm, i] > top[0]:
                            top[0] = best[vm, i]
                            where[0] = places[vm, i]
                    if lost[0] < 0:
                        where[0] = -1
                    ids[0, vm] = T.Cast("int64", where[0])

    return argmax
