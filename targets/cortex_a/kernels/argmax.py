"""Greedy choice on the device: the head's logits become token ids; equal logits give the lowest id."""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cortex_a.tile import CpuTile


@functools.cache
def argmax(tile: CpuTile, n: int, vocab: int) -> Any:
    """The PrimFunc (logits[1, n, vocab], ids[1, n] int64): first the maximum over lanes, then the id that has it."""
    lanes = tile.lanes
    full = vocab // lanes

    @T.prim_func(s_tir=True)
    def argmax(logits: T.Buffer((1, n, vocab), "float32"), ids: T.Buffer((1, n), "int64")):
        T.func_attr({"tirx.noalias": True})
        for m in T.serial(n):
            with T.sblock("row"):
                vm = T.axis.spatial(n, m)
                best = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                top = T.sblock_alloc_buffer((1,), "float32", scope="local")
                for v in T.vectorized(lanes):
                    best[v] = T.float32(-3.4e38)
                for i in T.serial(full):
                    for v in T.vectorized(lanes):
                        best[v] = T.max(best[v], logits[0, vm, i * lanes + v])
                top[0] = T.float32(-3.4e38)
                for v in T.serial(lanes):
                    top[0] = T.max(top[0], best[v])
                for i in T.serial(vocab - full * lanes):
                    top[0] = T.max(top[0], logits[0, vm, full * lanes + i])
                ids[0, vm] = T.int64(0)
                for i in T.serial(vocab):
                    if logits[0, vm, vocab - 1 - i] == top[0]:
                        ids[0, vm] = T.Cast("int64", vocab - 1 - i)

    return argmax
