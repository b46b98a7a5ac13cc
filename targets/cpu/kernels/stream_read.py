"""Reading memory as the linears do: the sustained bandwidth that their times are compared with."""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile

_PARTS = 64


@functools.cache
def stream_read(tile: CpuTile, count: int) -> Any:
    """The PrimFunc (x[count] float32, y[64, lanes]): 64 parallel sums; count is a multiple of 512 lanes."""
    lanes, wide = tile.lanes, 8
    steps = count // (_PARTS * wide * lanes)

    @T.prim_func(s_tir=True)
    def stream_read(x: T.Buffer((count,), "float32"), y: T.Buffer((_PARTS, lanes), "float32")):
        T.func_attr({"tirx.noalias": True})
        for p in T.parallel(_PARTS):
            with T.sblock("part"):
                vp = T.axis.spatial(_PARTS, p)
                acc = T.sblock_alloc_buffer((wide, lanes), "float32", scope="local")
                for j in T.unroll(wide):
                    for v in T.vectorized(lanes):
                        acc[j, v] = T.float32(0)
                for i in T.serial(steps):
                    for j in T.unroll(wide):
                        for v in T.vectorized(lanes):
                            acc[j, v] = acc[j, v] + x[((vp * steps + i) * wide + j) * lanes + v]
                for j in T.unroll(wide):
                    if j > 0:
                        for v in T.vectorized(lanes):
                            acc[0, v] = acc[0, v] + acc[j, v]
                for v in T.vectorized(lanes):
                    y[vp, v] = acc[0, v]

    return stream_read
