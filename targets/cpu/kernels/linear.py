"""Matrix multiplication with packed weights: y[1, n, N] = x[1, n, K] @ w, w stored as panels [ceil(N/panel), K, panel].

One vector lane holds one output column and k runs upward in one chain of fused multiply-adds per output, so a
row's bits do not depend on n. Weights are float32 or float16, the accumulator is float32.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from tvm.script import tirx as T

from targets.cpu.kernels.linear_turns import linear_in_turns
from targets.cpu.linear_tile import linear_tile
from targets.cpu.tile import SERIAL_WEIGHTS, CpuTile


@functools.cache
def linear(tile: CpuTile, n: int, k: int, columns: int, dtype: str) -> Any:
    """The PrimFunc (x, w, y). `columns` = N may end inside a panel: there the packed weights are zero.

    When the row tile does not divide n, the last tile overlaps the one before it and writes the same bits again.
    """
    lanes, vectors, panel = tile.lanes, tile.panel_vectors, tile.panel
    blocks = -(-columns // panel)
    walk = linear_tile(tile, n, k, blocks, np.dtype(dtype).itemsize)
    if walk.ahead:
        return linear_in_turns(tile, walk, n, k, columns, dtype)
    rows, side = walk.rows, walk.side
    row_tiles, groups, wide = walk.row_tiles, blocks // side, side * vectors
    unroll = next(u for u in (4, 2, 1) if k % u == 0)
    ragged = columns % panel != 0
    loop = T.serial if columns * k < SERIAL_WEIGHTS else T.parallel

    @T.prim_func(s_tir=True)
    def linear(
        x: T.Buffer((1, n, k), "float32"),
        w: T.Buffer((blocks, k, panel), dtype),
        y: T.Buffer((1, n, columns), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for g in loop(groups):
            for r in T.serial(row_tiles):
                with T.sblock("tile"):
                    vg = T.axis.spatial(groups, g)
                    vr = T.axis.spatial(row_tiles, r)
                    acc = T.sblock_alloc_buffer((rows, side * panel), "float32", scope="local")
                    for m in T.unroll(rows):
                        for j in T.unroll(wide):
                            for v in T.vectorized(lanes):
                                acc[m, j * lanes + v] = T.float32(0)
                    for ko in T.serial(k // unroll):
                        for ki in T.unroll(unroll):
                            for p in T.unroll(side):
                                for j in T.unroll(vectors):
                                    for m in T.unroll(rows):
                                        for v in T.vectorized(lanes):
                                            acc[m, p * panel + j * lanes + v] = T.fma(
                                                x[0, T.min(vr * rows, n - rows) + m, ko * unroll + ki],
                                                T.cast(
                                                    w[vg * side + p, ko * unroll + ki, j * lanes + v],
                                                    "float32",
                                                ),
                                                acc[m, p * panel + j * lanes + v],
                                            )
                    for m in T.unroll(rows):
                        for j in T.unroll(wide):
                            if ragged:
                                for v in T.serial(lanes):
                                    if (vg * side * panel + j * lanes + v) < columns:
                                        y[
                                            0,
                                            T.min(vr * rows, n - rows) + m,
                                            vg * side * panel + j * lanes + v,
                                        ] = acc[m, j * lanes + v]
                            else:
                                for v in T.vectorized(lanes):
                                    y[
                                        0,
                                        T.min(vr * rows, n - rows) + m,
                                        vg * side * panel + j * lanes + v,
                                    ] = acc[m, j * lanes + v]

    return linear
