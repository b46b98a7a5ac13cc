"""linear_int on aarch64: the arithmetic of linear_int.py, walked so that what a core multiplies stays in registers.

A tile is some rows by some vectors of four columns (IntegerDot.side). A panel is walked in chunks of k that stay in the
level-1 cache, all tiles of a chunk before the next chunk: memory is read while all rows are computed.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from targets.cpu.dot import DOTS, OFFSET, STEP, dot_of
from targets.cpu.kernels.neon_dot import LANES, NEON_DOTS, Activations, Weights
from targets.cpu.tile import CpuTile

_AHEAD = 8  # steps of weights that are asked for before they are read
_CHUNK = 16  # steps: at most 8 KiB of weights


def linear_int_neon(
    tile: CpuTile,
    n: int,
    k: int,
    columns: int,
    bits: int,
    block: int,
    scale_dtype: str,
    zeros: bool,
    zero_dtype: str = "uint8",
) -> Any:
    """The PrimFunc (codes, x_scale, total, q, scale, zero, y), as linear_int's."""
    integer, panel = DOTS[dot_of(tile.dot, n)], tile.panel
    rows = integer.tile_rows(n)
    side = min(integer.side[rows - 1], panel // LANES)
    vectors, blocks, steps = panel // LANES, -(-columns // panel), k // STEP
    words, of_step, k_blocks = k * bits // 32, STEP * bits // 32, k // block + (k % block > 0)
    row_tiles, groups = -(-n // rows), vectors // side
    chunks = 1 if row_tiles * groups == 1 else -(-steps // _CHUNK)
    chunk = -(-steps // chunks)
    zero_shape = (blocks, k_blocks, panel) if zeros else (1, 1, 1)
    asked = -(-of_step // (groups * row_tiles))  # rows of q that one tile asks for
    ragged = columns % panel != 0

    def scales(scale: Any, zero: Any, g: Any, s: Any, column: Any) -> tuple[Any, Any]:
        """Of a vector's columns: what sums are multiplied with, and with zero points what totals are."""
        at = g, s * STEP // block, T.ramp(column, 1, LANES)
        factor = T.bind(T.cast(scale[at], f"float32x{LANES}"))
        if not zeros:
            return factor, None
        middle = T.broadcast(T.float32(1 << (bits - 1)), LANES)
        return factor, T.bind(factor * (middle - T.cast(zero[at], f"float32x{LANES}")))

    def step(acc: Any, first: Any, kept: Any, column: Any, s: Any, g: Any, given: tuple[Any, ...]) -> None:
        """Add step s to a tile of acc, whose rows `kept` .. are the rows `first` .. of the activations."""
        x, x_scale, total, q, scale, zero = given
        at = [first + m for m in range(rows)]
        of_row = [T.bind(x_scale[0, row, s]) for row in at]
        totals = [T.bind(total[0, row, s]) for row in at]
        places = [column + j * LANES for j in range(side)]
        weights = [Weights(q, g, s * of_step, place, bits) for place in places]
        starts = [T.bind(value * T.int32(-OFFSET[bits])) if OFFSET[bits] else T.int32(0) for value in totals]
        sums = NEON_DOTS[integer.instruction](weights, Activations(x, k, at, s * STEP, starts))
        shifts = (
            [T.bind(T.cast(value, "float32") * x) for value, x in zip(totals, of_row, strict=True)] if zeros else []
        )
        for place, of_rows in zip(places, sums, strict=True):
            factor, shift = scales(scale, zero, g, s, place)
            for m in range(rows):
                kept_at = kept + m, T.ramp(place, 1, LANES)
                scaled = T.cast(of_rows[m], f"float32x{LANES}") * factor
                y = T.fma(scaled, T.broadcast(of_row[m], LANES), acc[kept_at])
                if zeros:
                    y = T.fma(shift, T.broadcast(shifts[m], LANES), y)
                T.buffer_store(acc, y, list(kept_at))

    def ask(q: Any, g: Any, word: Any) -> None:
        prefetch = T.llvm_lookup_intrinsic_id("llvm.prefetch")
        for i in range(asked):
            T.evaluate(T.call_llvm_intrin(prefetch, T.address_of(q[g, word + i, 0]), 0, 3, 1, dtype="void"))

    @T.prim_func(s_tir=True)
    def linear_int(
        x: T.Buffer((1, n, k), "int8"),
        x_scale: T.Buffer((1, n, steps), "float32"),
        total: T.Buffer((1, n, steps), "int32"),
        q: T.Buffer((blocks, words, panel), "uint32"),
        scale: T.Buffer((blocks, k_blocks, panel), scale_dtype),
        zero: T.Buffer(zero_shape, zero_dtype),
        y: T.Buffer((1, n, columns), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for g in T.parallel(blocks):
            with T.sblock("tile"):
                vg = T.axis.spatial(blocks, g)
                acc = T.sblock_alloc_buffer((row_tiles * rows, panel), "float32", scope="local")
                for m in T.serial(row_tiles * rows):
                    for j in T.unroll(vectors):
                        acc[m, T.ramp(j * LANES, 1, LANES)] = T.broadcast(T.float32(0), LANES)
                for c in T.serial(chunks):
                    for j in T.serial(groups):
                        for r in T.serial(row_tiles):
                            for s in T.serial(T.min(chunk, steps - c * chunk)):
                                ask(q, vg, (c * chunk + s + _AHEAD) * of_step + (j * row_tiles + r) * asked)
                                step(
                                    acc,
                                    T.min(r * rows, n - rows),
                                    r * rows,
                                    j * side * LANES,
                                    c * chunk + s,
                                    vg,
                                    (x, x_scale, total, q, scale, zero),
                                )
                for r in T.serial(row_tiles):
                    for m in T.serial(rows):
                        for j in T.unroll(vectors):
                            if ragged:
                                for v in T.serial(LANES):
                                    if vg * panel + j * LANES + v < columns:
                                        y[0, T.min(r * rows, n - rows) + m, vg * panel + j * LANES + v] = acc[
                                            r * rows + m, j * LANES + v
                                        ]
                            else:
                                for v in T.vectorized(LANES):
                                    y[0, T.min(r * rows, n - rows) + m, vg * panel + j * LANES + v] = acc[
                                        r * rows + m, j * LANES + v
                                    ]

    return linear_int
