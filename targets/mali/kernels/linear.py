"""Matrix product with packed weights: y[1, n, N] = x[1, n, K] @ w, w stored as panels [ceil(N/panel), K, panel].

One work-item computes 4 (float32) or 8 (float16) columns of some rows: each step of k is one 128-bit load of weights.
k runs upward in one chain of fused multiply-adds per output, as on the CPU, so a row's bits do not depend on n.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.mali.kernels import load_half, storage
from targets.mali.tile import GpuTile


@functools.cache
def linear(tile: GpuTile, n: int, k: int, columns: int, dtype: str) -> Any:
    """The PrimFunc (x, w, y); float16 weights as uint16. `columns` = N may end inside a panel."""
    panel, half, size = tile.panel, dtype == "float16", tile.group
    wide = 8 if half else 4
    blocks, per = -(-columns // panel), panel // wide
    items, rows = blocks * per, tile.rows(n, wide)
    row_tiles, groups = -(-n // rows), -(-items // size)
    unroll = next(u for u in (4, 2, 1) if k % u == 0)
    ragged, stored = columns % wide != 0, storage(dtype)

    @T.prim_func(s_tir=True)
    def linear(
        x: T.Buffer((1, n, k), "float32"),
        w: T.Buffer((blocks, k, panel), stored),
        y: T.Buffer((1, n, columns), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for r in T.thread_binding(row_tiles, thread="blockIdx.y"):
            for b in T.thread_binding(groups, thread="blockIdx.x"):
                for t in T.thread_binding(size, thread="threadIdx.x"):
                    with T.sblock("tile"):
                        vr = T.axis.spatial(row_tiles, r)
                        vi = T.axis.spatial(items, b * size + t)
                        T.where(b * size + t < items)
                        acc = T.sblock_alloc_buffer((rows, wide), "float32", scope="local")
                        now = T.sblock_alloc_buffer((wide,), "float32", scope="local")
                        for m in T.unroll(rows):
                            for v in T.vectorized(wide):
                                acc[m, v] = T.float32(0)
                        for ko in T.serial(k // unroll):
                            for ki in T.unroll(unroll):
                                if half:
                                    now[T.Ramp(0, 1, wide)] = load_half(
                                        w, vi // per, ko * unroll + ki, vi % per * wide, lanes=wide
                                    )
                                else:
                                    for v in T.vectorized(wide):
                                        now[v] = w[vi // per, ko * unroll + ki, vi % per * wide + v]
                                for m in T.unroll(rows):
                                    for v in T.vectorized(wide):
                                        acc[m, v] = T.fma(
                                            x[0, T.min(vr * rows + m, n - 1), ko * unroll + ki], now[v], acc[m, v]
                                        )
                        for m in T.unroll(rows):
                            if vr * rows + m < n:
                                if ragged:
                                    for v in T.unroll(wide):
                                        if vi * wide + v < columns:
                                            y[0, vr * rows + m, vi * wide + v] = acc[m, v]
                                elif vi * wide < columns:
                                    for v in T.vectorized(wide):
                                        y[0, vr * rows + m, vi * wide + v] = acc[m, v]

    return linear
