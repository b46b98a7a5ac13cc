"""Matrix multiplication of int8 activations with block-quantised weights, in integers within each 32 values of k.

Activations of a row have one scale for 32 values: scale = max |x| / 127, code = round(x * (127 / max |x|)), halves to
even. Per 32 values of k: the exact integer sum of code * (q - middle), times the weight's scale, times the activations'
scale, added by one fused multiply-add; then, with zero points, the sum of codes times (middle - zero) * scale, added
likewise. So a row's bits depend neither on n nor on the instructions that make the integer sums.

Weights are packed as linear_nbits.py says.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.script import tirx as T

from targets.cpu.dot import DOTS, STEP, dot_of
from targets.cpu.kernels.ask import ask
from targets.cpu.kernels.integer_dot import Activations, Sums, Weights
from targets.cpu.kernels.neon_dot import NEON_DOTS
from targets.cpu.kernels.pmadd_dot import pmadd
from targets.cpu.kernels.vnni_dot import VNNI_DOTS
from targets.cpu.tile import CpuTile

_AHEAD = 8  # steps of weights that are asked for before they are read; Zen 3: 10 -> 13 GB/s at one row
_LEAD = 2  # steps that a chunk asks for beyond the next one: its first tiles need the last lines of all steps at once
_CHUNK, _CHUNK_WEIGHTS = 16, 16 * 1024  # the most steps, and the most weights
_LINE = 16  # words of a cache line
_SUMS: dict[str, Sums] = {**NEON_DOTS, "pmadd": pmadd, **VNNI_DOTS}


@functools.cache
def quantise_rows(tile: CpuTile, n: int, width: int, dtype: str) -> Any:
    """The PrimFunc (x[1, n, width], codes of `dtype`, scale[1, n, width / 32], sum of the codes int32).

    Where rows are multiplied in pairs, 8 codes of the first row of a pair and 8 of the second alternate; where all rows
    are multiplied step by step, the tensors are filled step by step, see targets/cpu/dot.py. A number that
    is not finite gives a scale that is not, so that it shows in the logits.
    """
    steps = width // STEP
    dot = DOTS[dot_of(tile.dot, n)]
    pairs, by_step = dot.pairs, dot.by_step
    largest = _fmaximum if tile.lanes == 4 else _whole_maximum

    @T.prim_func(s_tir=True)
    def quantise_rows(
        x: T.Buffer((1, n, width), "float32"),
        codes: T.Buffer((1, n, width), dtype),
        scale: T.Buffer((1, n, steps), "float32"),
        total: T.Buffer((1, n, steps), "int32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, g in T.grid(n, steps):
            with T.sblock("step"):
                vm, vg = T.axis.remap("SS", [m, g])
                top = T.sblock_alloc_buffer((1,), "float32", scope="local")
                code = T.sblock_alloc_buffer((STEP,), "int32", scope="local")
                top[0] = largest(x[0, vm, T.ramp(vg * STEP, 1, STEP)])
                for v in T.vectorized(STEP):
                    code[v] = T.cast(
                        T.nearbyint(
                            T.max(
                                T.min(
                                    x[0, vm, vg * STEP + v]
                                    * T.if_then_else(top[0] > T.float32(0), T.float32(127) / top[0], T.float32(0)),
                                    T.float32(127),
                                ),
                                T.float32(-127),
                            )
                        ),
                        "int32",
                    )
                if pairs:
                    for i in T.unroll(STEP // 8):
                        for v in T.vectorized(8):
                            codes[0, vm // 2 * 2, 2 * vg * STEP + 16 * i + vm % 2 * 8 + v] = T.cast(
                                code[8 * i + v], dtype
                            )
                else:
                    for v in T.vectorized(STEP):
                        codes[0, 0 if by_step else vm, (vg * n + vm if by_step else vg) * STEP + v] = T.cast(
                            code[v], dtype
                        )
                at = T.meta_var((0, 0, vg * n + vm) if by_step else (0, vm, vg))
                scale[at] = top[0] * T.float32(1 / 127)
                total[at] = _intrinsic("llvm.vector.reduce.add", code[T.ramp(0, 1, STEP)], dtype="int32")

    return quantise_rows


def _fmaximum(x: Any) -> Any:
    """The largest magnitude of a step, not a number where one of them is none; NEON has this maximum."""
    magnitudes = _intrinsic("llvm.fabs", x, dtype=f"float32x{STEP}")
    return _intrinsic("llvm.vector.reduce.fmaximum", magnitudes, dtype="float32")


def _whole_maximum(x: Any) -> Any:
    """The same on x86-64, whose maximum loses what is not a number: magnitudes as whole numbers have their order."""
    magnitudes = T.reinterpret(x, dtype=f"int32x{STEP}") & T.broadcast(T.int32(0x7FFFFFFF), STEP)
    return T.reinterpret(_intrinsic("llvm.vector.reduce.smax", magnitudes, dtype="int32"), dtype="float32")


def _intrinsic(name: str, *args: Any, dtype: str) -> Any:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype)


@functools.cache
def linear_int(
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
    """The PrimFunc (codes, x_scale, total, q, scale, zero, y); the first three as quantise_rows makes them.

    A tile is some rows by some vectors of columns (IntegerDot.side). A panel is walked in chunks of k that stay in the
    level-1 cache, all tiles of a chunk before the next chunk: memory is read while all rows are computed. Arm cores
    keep a tile's results in registers over a chunk; x86-64 has too few, so there tiles of rows follow one another at
    each step (llvm-mca, znver3, 8 rows: 11 % fewer cycles with 4-bit weights, 34 % with 8-bit ones).
    """
    integer, panel = DOTS[dot_of(tile.dot, n)], tile.panel
    lanes, dtype, by_step = integer.columns, integer.activations[bits], integer.by_step
    rows, offset = integer.tile_rows(n), integer.offset(bits)
    side = min(integer.side[rows - 1], panel // lanes)
    vectors, blocks, steps = panel // lanes, -(-columns // panel), k // STEP
    words, of_step, k_blocks = k * bits // 32, STEP * bits // 32, k // block + (k % block > 0)
    row_tiles, groups = -(-n // rows), vectors // side
    chunks = 1 if row_tiles * groups == 1 else -(-steps // min(_CHUNK, _CHUNK_WEIGHTS // (STEP * panel)))
    chunk = -(-steps // chunks)
    ahead = _AHEAD if chunks == 1 else chunk + _LEAD
    zero_shape = (blocks, k_blocks, panel) if zeros else (1, 1, 1)
    lines = panel // _LINE  # of one row of q
    asked = -(-of_step * lines // (groups * row_tiles))  # lines that one tile asks for
    ragged = columns % panel != 0

    def of_step_and_row(values: Any, s: Any, row: Any) -> Any:
        return values[0, 0, s * n + row] if by_step else values[0, row, s]

    def scales(scale: Any, zero: Any, g: Any, s: Any, column: Any) -> tuple[Any, Any]:
        """Of a vector's columns: what sums are multiplied with, and with zero points what totals are."""
        at = g, s * STEP // block, T.ramp(column, 1, lanes)
        factor = T.bind(T.cast(scale[at], f"float32x{lanes}"))
        if not zeros:
            return factor, None
        middle = T.broadcast(T.float32(1 << (bits - 1)), lanes)
        return factor, T.bind(factor * (middle - T.cast(zero[at], f"float32x{lanes}")))

    def lines_of(q: Any, g: Any, first: Any) -> Callable[[int, int], None]:
        """Asks for lines of a panel from `first` on; they may be those of the next panel, which follows it."""

        def ask_part(part: int, parts: int) -> None:
            for i in range(asked * part // parts, asked * (part + 1) // parts):
                ask(q[g, 0, (first + i) * _LINE])

        return ask_part

    def ask_scales(values: Any, dtype: str, g: Any, row: Any, column: Any) -> None:
        """Ask for the scales or the zero points of a tile's columns: they are a stream of their own."""
        for first in range(0, side * lanes, 64 // np.dtype(dtype).itemsize):
            ask(values[g, row, column + first])

    def step(acc: Any, r: Any, j: Any, c: Any, i: Any, g: Any, given: tuple[Any, ...]) -> None:
        """Add step i of chunk c to tile (r, j) of acc, whose rows are rows of the activations; ask for later weights.

        On x86-64 these are asked for in the order in which they lie in memory, whatever the order of tiles, and between
        the products: requests at once wait for each other and hold up the loads behind them. On Arm, where that takes
        registers that the sums need, each tile begins with asking for its lines of a later step.
        """
        x, x_scale, total, q, scale, zero = given
        s, own = c * chunk + i, T.min(chunk, steps - c * chunk)
        before = (j * own + i) * row_tiles + r if by_step else (j * row_tiles + r) * own + i  # tiles of the chunk
        if tile.lanes == 4:
            lines_of(q, g, (s + _AHEAD) * of_step * lines + (j * row_tiles + r) * asked)(0, 1)
        ask_part = lines_of(q, g, (c * chunk + ahead) * of_step * lines + before * asked)
        kept, column = r * rows, j * side * lanes
        for values, dtype in ((scale, scale_dtype), (zero, zero_dtype))[: 1 + zeros]:
            ask_scales(values, dtype, g, (s + _AHEAD) * STEP // block, column)
        at = [T.min(r * rows, n - rows) + m for m in range(rows)]
        of_row = [T.bind(of_step_and_row(x_scale, s, row)) for row in at]
        totals = [T.bind(of_step_and_row(total, s, row)) for row in at]
        places = [column + j * lanes for j in range(side)]
        weights = [Weights(q, g, s * of_step, place, bits) for place in places]
        starts = [T.bind(value * T.int32(-offset)) if offset else T.int32(0) for value in totals]
        sums = _SUMS[integer.instruction](weights, Activations(x, n, at, s, starts, by_step, ask_part))
        shifts = (
            [T.bind(T.cast(value, "float32") * x) for value, x in zip(totals, of_row, strict=True)] if zeros else []
        )
        for place, of_rows in zip(places, sums, strict=True):
            factor, shift = scales(scale, zero, g, s, place)
            for m in range(rows):
                kept_at = kept + m, T.ramp(place, 1, lanes)
                scaled = T.cast(of_rows[m], f"float32x{lanes}") * factor
                y = T.fma(scaled, T.broadcast(of_row[m], lanes), acc[kept_at])
                if zeros:
                    y = T.fma(shift, T.broadcast(shifts[m], lanes), y)
                T.buffer_store(acc, y, list(kept_at))

    @T.prim_func(s_tir=True)
    def linear_int(
        x: T.Buffer((1, n, k), dtype),
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
                        acc[m, T.ramp(j * lanes, 1, lanes)] = T.broadcast(T.float32(0), lanes)
                for c in T.serial(chunks):
                    for j in T.serial(groups):
                        if by_step:
                            for s in T.serial(T.min(chunk, steps - c * chunk)):
                                for r in T.serial(row_tiles):
                                    step(acc, r, j, c, s, vg, (x, x_scale, total, q, scale, zero))
                        else:
                            for r in T.serial(row_tiles):
                                for s in T.serial(T.min(chunk, steps - c * chunk)):
                                    step(acc, r, j, c, s, vg, (x, x_scale, total, q, scale, zero))
                for r in T.serial(row_tiles):
                    for m in T.serial(rows):
                        for j in T.unroll(vectors):
                            if ragged:
                                for v in T.serial(lanes):
                                    if vg * panel + j * lanes + v < columns:
                                        y[0, T.min(r * rows, n - rows) + m, vg * panel + j * lanes + v] = acc[
                                            r * rows + m, j * lanes + v
                                        ]
                            else:
                                for v in T.vectorized(lanes):
                                    y[0, T.min(r * rows, n - rows) + m, vg * panel + j * lanes + v] = acc[
                                        r * rows + m, j * lanes + v
                                    ]

    return linear_int
