"""Matrix multiplication of int8 activations with block-quantised weights, in integers within each 32 values of k.

Activations of a row have one scale for 32 values: scale = max |x| / 127, code = round(x * (127 / max |x|)), halves to
even. Per 32 values of k: the exact integer sum of code * (q - middle), times the weight's scale, times the activations'
scale, added by one fused multiply-add; then, with zero points, the sum of codes times (middle - zero) * scale, added
likewise. So a row's bits depend neither on n nor on the instructions that make the integer sums.

Weights are packed as linear_nbits.py says.
"""

from __future__ import annotations

import functools
from typing import Any

import tvm
from tvm.script import tirx as T

from targets.cpu.dot import DOTS, OFFSET, ROWS, STEP, dot_of
from targets.cpu.kernels.integer_dot import MAKERS
from targets.cpu.kernels.linear_int_neon import linear_int_neon
from targets.cpu.tile import CpuTile

_AHEAD = 8  # steps of weights that are asked for before they are read; Zen 3: 10 -> 13 GB/s at one row


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
                top[0] = T.call_llvm_pure_intrin(
                    T.llvm_lookup_intrinsic_id("llvm.vector.reduce.fmaximum"),
                    T.call_llvm_pure_intrin(
                        T.llvm_lookup_intrinsic_id("llvm.fabs"),
                        x[0, vm, T.ramp(vg * STEP, 1, STEP)],
                        dtype="float32x32",
                    ),
                    dtype="float32",
                )
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
                            codes[
                                0,
                                vm // 2 * 2 + (2 * vg * STEP + 16 * i) // width,
                                (2 * vg * STEP + 16 * i) % width + vm % 2 * 8 + v,
                            ] = T.cast(code[8 * i + v], dtype)
                else:
                    for v in T.vectorized(STEP):
                        codes[
                            0,
                            (vg * n + vm) * STEP // width if by_step else vm,
                            ((vg * n + vm) * STEP % width if by_step else vg * STEP) + v,
                        ] = T.cast(code[v], dtype)
                at_row = T.meta_var((vg * n + vm) // steps if by_step else vm)
                at_step = T.meta_var((vg * n + vm) % steps if by_step else vg)
                scale[0, at_row, at_step] = top[0] * T.float32(1 / 127)
                total[0, at_row, at_step] = T.call_llvm_pure_intrin(
                    T.llvm_lookup_intrinsic_id("llvm.vector.reduce.add"), code[T.ramp(0, 1, STEP)], dtype="int32"
                )

    return quantise_rows


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
    """The PrimFunc (codes, x_scale, total, q, scale, zero, y); the first three as quantise_rows makes them."""
    if tile.dot not in MAKERS:
        return linear_int_neon(tile, n, k, columns, bits, block, scale_dtype, zeros, zero_dtype)
    panel, lanes, dtype = tile.panel, DOTS[tile.dot].columns, DOTS[tile.dot].activations[bits]
    dot = MAKERS[tile.dot][bits]
    vectors, blocks, steps = panel // lanes, -(-columns // panel), k // STEP
    words, of_step, k_blocks = k * bits // 32, STEP * bits // 32, k // block + (k % block > 0)
    rows = next(r for r in range(min(n, ROWS), 0, -1) if n % r == 0)
    zero_shape = (blocks, k_blocks, panel) if zeros else (1, 1, 1)
    of_word, of_part = STEP // of_step, lanes // dot.parts
    offset, middle = OFFSET[bits], float(1 << (bits - 1))
    ragged, zero_sum = columns % panel != 0, tvm.tirx.const(0, dot.dtype)

    def add(sums: Any, m: Any, p: Any, q: Any, g: Any, s: Any, i: Any, j: Any, x: Any, row: Any) -> None:
        """Add word i of step s to part p of the sums of a tile's row m, which is this row of x."""

        def codes(first: int, count: int) -> Any:
            place = (s * n + row) * STEP + i * of_word + first
            return x[0, place // k, T.ramp(place % k, 1, count)]

        words = q[g, s * of_step + i, T.ramp(j * lanes + p * of_part, 1, of_part)]
        at = m, p, T.ramp(0, 1, dot.lanes)
        T.buffer_store(sums, dot.add(sums[at], words, codes), list(at))

    def finish(acc: Any, j: Any, sums: Any, m: Any, s: Any, row: Any, *given: Any) -> None:
        """Add step s to row `row` of acc, from the sums of a tile's row m."""
        x_scale, total, factor, shift = given
        at = 0, (s * n + row) // steps, (s * n + row) % steps
        vector, kept = T.ramp(0, 1, lanes), [row, T.ramp(j * lanes, 1, lanes)]
        whole = dot.finish([sums[m, p, T.ramp(0, 1, dot.lanes)] for p in range(dot.parts)])
        if offset:
            whole = whole - T.broadcast(total[at] * T.int32(offset), lanes)
        scaled = T.cast(whole, f"float32x{lanes}") * factor[vector]
        y = T.fma(scaled, T.broadcast(x_scale[at], lanes), acc[tuple(kept)])
        if zeros:
            y = T.fma(shift[vector], T.broadcast(T.cast(total[at], "float32") * x_scale[at], lanes), y)
        T.buffer_store(acc, y, kept)

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
                acc = T.sblock_alloc_buffer((n, panel), "float32", scope="local")
                factor = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                sums = T.sblock_alloc_buffer((rows, dot.parts, dot.lanes), dot.dtype, scope="local")
                shift = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                for m in T.serial(n):
                    for j in T.unroll(vectors):
                        acc[m, T.ramp(j * lanes, 1, lanes)] = T.broadcast(T.float32(0), lanes)
                for s in T.serial(steps):
                    for i in T.unroll(of_step):
                        T.evaluate(
                            T.call_llvm_intrin(
                                T.llvm_lookup_intrinsic_id("llvm.prefetch"),
                                T.address_of(q[vg, (s + _AHEAD) * of_step + i, 0]),
                                0,
                                3,
                                1,
                                dtype="void",
                            )
                        )
                    for j in T.unroll(vectors):
                        for v in T.vectorized(lanes):
                            factor[v] = T.cast(scale[vg, s * STEP // block, j * lanes + v], "float32")
                        if zeros:
                            for v in T.vectorized(lanes):
                                shift[v] = factor[v] * (
                                    T.float32(middle) - T.cast(zero[vg, s * STEP // block, j * lanes + v], "float32")
                                )
                        for r in T.serial(n // rows):
                            if dot.words_first:
                                for m in T.unroll(rows):
                                    for p in T.unroll(dot.parts):
                                        sums[m, p, T.ramp(0, 1, dot.lanes)] = T.broadcast(zero_sum, dot.lanes)
                                for i in T.unroll(of_step):
                                    for m in T.unroll(rows):
                                        for p in T.unroll(dot.parts):
                                            add(sums, m, p, q, vg, s, i, j, x, r * rows + m)
                                for m in T.unroll(rows):
                                    finish(acc, j, sums, m, s, r * rows + m, x_scale, total, factor, shift)
                            else:
                                for m in T.unroll(rows):
                                    for p in T.unroll(dot.parts):
                                        sums[m, p, T.ramp(0, 1, dot.lanes)] = T.broadcast(zero_sum, dot.lanes)
                                    for i in T.unroll(of_step):
                                        for p in T.unroll(dot.parts):
                                            add(sums, m, p, q, vg, s, i, j, x, r * rows + m)
                                    finish(acc, j, sums, m, s, r * rows + m, x_scale, total, factor, shift)
                for m in T.serial(n):
                    for j in T.unroll(vectors):
                        if ragged:
                            for v in T.serial(lanes):
                                if vg * panel + j * lanes + v < columns:
                                    y[0, m, vg * panel + j * lanes + v] = acc[m, j * lanes + v]
                        else:
                            for v in T.vectorized(lanes):
                                y[0, m, vg * panel + j * lanes + v] = acc[m, j * lanes + v]

    return linear_int
