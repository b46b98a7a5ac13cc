"""A matrix multiplication with float weights (linear.py) whose row tiles take turns at parts of a panel.

Between the parts the sums of a row tile are kept in memory. Lines are asked for each by one row tile, so that memory is
busy while all of them multiply; a row tile alone asks for its own some rows ahead (targets/cpu/linear_tile.py).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm.script import tirx as T

from targets.cpu.kernels.ask import ask
from targets.cpu.linear_tile import LINE_BYTES, LinearTile
from targets.cpu.tile import SERIAL_WEIGHTS, CpuTile


def linear_in_turns(tile: CpuTile, walk: LinearTile, n: int, k: int, columns: int, dtype: str) -> Any:
    """The PrimFunc (x, w, y) of linear.py for a `walk` that asks ahead."""
    lanes, vectors, panel = tile.lanes, tile.panel_vectors, tile.panel
    blocks, line = -(-columns // panel), LINE_BYTES // np.dtype(dtype).itemsize
    rows, row_tiles, side, asked, ahead = walk.rows, walk.row_tiles, walk.side, walk.asked, walk.ahead
    groups, wide = blocks // side, side * vectors
    parts, in_part = -(-k // walk.part), walk.part // asked
    unroll = math.gcd(4, asked)
    shared = -(-asked * panel // line // row_tiles)  # lines that one row tile asks for
    ragged = columns % panel != 0
    loop = T.serial if columns * k < SERIAL_WEIGHTS else T.parallel

    def ask_share(w: Any, p: Any, row: Any, r: Any) -> None:
        """Ask for row tile r's share of the lines of panel p from `row` on, or of the next panel, which follows it."""
        for i in range(shared):
            at = (r * shared + i) * line
            ask(w[p, row + at // panel, at % panel])

    @T.prim_func(s_tir=True)
    def linear_in_turns(
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
                            for p in T.unroll(side):
                                ask_share(w, vg * side + p, (c * in_part + b) * asked + ahead, r)
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

    return linear_in_turns
