"""Matrix multiplication with packed weights: y[1, n, N] = x[1, n, K] @ w, w stored as panels [ceil(N/panel), K, panel].

One vector lane holds one output column and k runs upward in one chain of fused multiply-adds per output, so a
row's bits do not depend on n. Weights are float32 or float16, the accumulator is float32. Row tiles take turns at parts
of a panel, between which their sums are kept in memory, and ask for the next part's lines, each for its share, so that
memory is busy while they multiply (targets/cpu/linear_tile.py).
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from tvm.script import tirx as T

from targets.cpu.linear_tile import LINE_BYTES, linear_tile
from targets.cpu.tile import SERIAL_WEIGHTS, CpuTile


@functools.cache
def linear(tile: CpuTile, n: int, k: int, columns: int, dtype: str) -> Any:
    """The PrimFunc (x, w, y). `columns` = N may end inside a panel: there the packed weights are zero.

    When the row tile does not divide n, the last tile overlaps the one before it and writes the same bits again.
    """
    lanes, vectors, panel = tile.lanes, tile.panel_vectors, tile.panel
    blocks, line = -(-columns // panel), LINE_BYTES // np.dtype(dtype).itemsize
    walk = linear_tile(tile, n, k, blocks, np.dtype(dtype).itemsize)
    rows, row_tiles, side, asked, ahead = walk.rows, walk.row_tiles, walk.side, walk.asked, walk.ahead
    groups, wide = blocks // side, side * vectors
    parts, in_part = -(-k // walk.part), walk.part // asked
    unroll = math.gcd(4, asked)
    shared = -(-asked * panel // line // row_tiles)  # lines that one row tile asks for
    ragged = columns % panel != 0
    loop = T.serial if columns * k < SERIAL_WEIGHTS else T.parallel
    prefetch = T.llvm_lookup_intrinsic_id("llvm.prefetch")

    def ask(w: Any, p: Any, row: Any, r: Any) -> None:
        """Ask for row tile r's share of the lines of panel p from `row` on, or of the next panel, which follows it."""
        for i in range(shared):
            at = (r * shared + i) * line
            place = T.address_of(w[p, row + at // panel, at % panel])
            T.evaluate(T.call_llvm_intrin(prefetch, place, 0, 3, 1, dtype="void"))

    @T.prim_func(s_tir=True)
    def linear(
        x: T.Buffer((1, n, k), "float32"),
        w: T.Buffer((blocks, k, panel), dtype),
        y: T.Buffer((1, n, columns), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for g in loop(groups):
            with T.sblock("tile"):
                vg = T.axis.spatial(groups, g)
                kept = T.sblock_alloc_buffer((row_tiles * rows, side * panel), "float32", scope="local")
                acc = T.sblock_alloc_buffer((rows, side * panel), "float32", scope="local")
                for m in T.serial(row_tiles * rows):
                    for j in T.unroll(wide):
                        kept[m, T.ramp(j * lanes, 1, lanes)] = T.broadcast(T.float32(0), lanes)
                for c in T.serial(parts):
                    for r in T.serial(row_tiles):
                        for m in T.unroll(rows):
                            for j in T.unroll(wide):
                                acc[m, T.ramp(j * lanes, 1, lanes)] = kept[r * rows + m, T.ramp(j * lanes, 1, lanes)]
                        for b in T.serial(T.min(in_part, k // asked - c * in_part)):
                            if ahead > 0:
                                for p in T.unroll(side):
                                    ask(w, vg * side + p, (c * in_part + b) * asked + ahead, r)
                            for ko in T.serial(asked // unroll):
                                for ki in T.unroll(unroll):
                                    for p in T.unroll(side):
                                        for j in T.unroll(vectors):
                                            for m in T.unroll(rows):
                                                for v in T.vectorized(lanes):
                                                    acc[m, p * panel + j * lanes + v] = T.fma(
                                                        x[
                                                            0,
                                                            T.min(r * rows, n - rows) + m,
                                                            (c * in_part + b) * asked + ko * unroll + ki,
                                                        ],
                                                        T.cast(
                                                            w[
                                                                vg * side + p,
                                                                (c * in_part + b) * asked + ko * unroll + ki,
                                                                j * lanes + v,
                                                            ],
                                                            "float32",
                                                        ),
                                                        acc[m, p * panel + j * lanes + v],
                                                    )
                        for m in T.unroll(rows):
                            for j in T.unroll(wide):
                                kept[r * rows + m, T.ramp(j * lanes, 1, lanes)] = acc[m, T.ramp(j * lanes, 1, lanes)]
                for r in T.serial(row_tiles):
                    for m in T.unroll(rows):
                        for j in T.unroll(wide):
                            if ragged:
                                for v in T.serial(lanes):
                                    if (vg * side * panel + j * lanes + v) < columns:
                                        y[
                                            0,
                                            T.min(r * rows, n - rows) + m,
                                            vg * side * panel + j * lanes + v,
                                        ] = kept[r * rows + m, j * lanes + v]
                            else:
                                for v in T.vectorized(lanes):
                                    y[
                                        0,
                                        T.min(r * rows, n - rows) + m,
                                        vg * side * panel + j * lanes + v,
                                    ] = kept[r * rows + m, j * lanes + v]

    return linear
