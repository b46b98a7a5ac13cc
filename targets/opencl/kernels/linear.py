"""Matrix multiplication with packed weights: y[1, n, N] = x[1, n, K] @ w, w stored as panels [ceil(N/panel), K, panel].

One work-item computes 4 (float32) or 8 (float16) columns of some rows: each step of k is one 128-bit load of weights.
With more than 4 rows of float16 it is 4 columns, so that up to 8 rows share that load. Work-groups of the same columns
and other rows are neighbours, so that weights read again come from the GPU's cache. k runs upward in one chain of fused
multiply-adds per output, as on the CPU, so a row's bits do not depend on n.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.opencl.kernels import load_half, load_native_half, storage
from targets.opencl.tile import GpuTile


@functools.cache
def linear(tile: GpuTile, n: int, k: int, columns: int, dtype: str) -> Any:
    """The PrimFunc (x, w, y); float16 weights as uint16. `columns` = N may end inside a panel."""
    panel, half, size = tile.panel, dtype == "float16", tile.group
    widest = 8 if half else 4
    wide, rows = tile.columns(n, widest), tile.rows(n, widest)
    blocks, per = -(-columns // panel), panel // wide
    items, row_tiles = blocks * per, -(-n // rows)
    groups, unroll = -(-items // size), tile.unroll(k, rows, wide)
    ragged, stored, native = columns % wide != 0, storage(dtype), half and tile.native_half

    @T.prim_func(s_tir=True)
    def linear(
        x: T.Buffer((1, n, k), "float32"),
        w: T.Buffer((blocks, k, panel), stored),
        y: T.Buffer((1, n, columns), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for b in T.thread_binding(groups, thread="blockIdx.y"):
            for r in T.thread_binding(row_tiles, thread="blockIdx.x"):
                for t in T.thread_binding(size, thread="threadIdx.x"):
                    with T.sblock("tile"):
                        vr = T.axis.spatial(row_tiles, r)
                        vi = T.axis.spatial(items, b * size + t)
                        T.where(b * size + t < items)
                        acc = T.sblock_alloc_buffer((rows, wide), "float32", scope="local")
                        weights = T.sblock_alloc_buffer((unroll, wide), "float32", scope="local")
                        xs = T.sblock_alloc_buffer((unroll,), "float32", scope="local")
                        if native:
                            raw = T.sblock_alloc_buffer((wide,), "float16", scope="local")
                        for m in T.unroll(rows):
                            for v in T.vectorized(wide):
                                acc[m, v] = T.float32(0)
                        for ko in T.serial(k // unroll):
                            for ki in T.unroll(unroll):
                                if native:
                                    raw[T.Ramp(0, 1, wide)] = load_native_half(
                                        w, vi // per, ko * unroll + ki, vi % per * wide, lanes=wide
                                    )
                                    for v in T.vectorized(wide):
                                        weights[ki, v] = T.cast(raw[v], "float32")
                                elif half:
                                    weights[ki, T.Ramp(0, 1, wide)] = load_half(
                                        w, vi // per, ko * unroll + ki, vi % per * wide, lanes=wide
                                    )
                                else:
                                    for v in T.vectorized(wide):
                                        weights[ki, v] = w[vi // per, ko * unroll + ki, vi % per * wide + v]
                            for m in T.unroll(rows):
                                for i in T.vectorized(unroll):
                                    xs[i] = x[0, T.min(vr * rows + m, n - 1), ko * unroll + i]
                                for ki in T.unroll(unroll):
                                    for v in T.vectorized(wide):
                                        acc[m, v] = T.fma(xs[ki], weights[ki, v], acc[m, v])
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
