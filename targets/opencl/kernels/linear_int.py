"""Matrix multiplication of int8 activations with block-quantised weights; arithmetic as in the CPU's linear_int.

Four codes of a row are a word, the first in its lowest byte, as four weights of a column are. One work-item computes 4
neighbouring columns of up to 4 rows, or 2 of up to 8, so that those rows share one read of the weights; its integer
sums start anew every 32 values of k. A row's bits are those of the CPU, whatever multiplies (integer_dot.py).
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.dot import STEP
from targets.opencl.dot import CODES
from targets.opencl.kernels import load_half, storage
from targets.opencl.kernels.integer_dot import dot
from targets.opencl.tile import GpuTile

_WORDS = STEP // CODES  # of codes in a step
_HALF = 4  # of them are loaded together
_NEAR = 3  # a quotient of OpenCL is at most 2.5 units in the last place off


@functools.cache
def quantise_rows(tile: GpuTile, n: int, width: int, dtype: str) -> Any:
    """The PrimFunc (x[1, n, width], codes uint32[1, n, width / 4], scale[1, n, width / 32], sum of the codes int32).

    A work-item makes the codes of one step. OpenCL need not round quotients correctly, so of the numbers near one the
    nearest is taken. A number that is not finite gives a scale that is not.
    """
    size, steps = tile.group, width // STEP
    items = n * steps
    groups = -(-items // size)

    @T.prim_func(s_tir=True)
    def quantise_rows(
        x: T.Buffer((1, n, width), "float32"),
        codes: T.Buffer((1, n, width // CODES), dtype),
        scale: T.Buffer((1, n, steps), "float32"),
        total: T.Buffer((1, n, steps), "int32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("step"):
                    vm = T.axis.spatial(n, (g * size + t) // steps)
                    vs = T.axis.spatial(steps, (g * size + t) % steps)
                    T.where(g * size + t < items)
                    xs = T.sblock_alloc_buffer((STEP,), "float32", scope="local")
                    top = T.sblock_alloc_buffer((1,), "uint32", scope="local")
                    lowest = T.sblock_alloc_buffer((1,), "uint32", scope="local")
                    factor = T.sblock_alloc_buffer((2,), "float32", scope="local")
                    error = T.sblock_alloc_buffer((2,), "float32", scope="local")
                    code = T.sblock_alloc_buffer((CODES,), "int32", scope="local")
                    words = T.sblock_alloc_buffer((_HALF,), "uint32", scope="local")
                    sums = T.sblock_alloc_buffer((1,), "int32", scope="local")
                    top[0] = T.uint32(0)
                    for i in T.unroll(STEP // 4):
                        for v in T.vectorized(4):
                            xs[i * 4 + v] = x[0, vm, vs * STEP + i * 4 + v]
                        for v in T.unroll(4):
                            top[0] = T.max(top[0], _bits(xs[i * 4 + v]) & T.uint32(0x7FFFFFFF))
                    factor[0] = T.float32(127) / _number(top[0])
                    error[0] = T.float32(3e38)
                    if factor[0] < T.float32(3e38):
                        lowest[0] = _bits(factor[0]) - T.uint32(_NEAR)
                        for i in T.unroll(2 * _NEAR + 1):
                            factor[1] = _number(lowest[0] + T.Cast("uint32", i))
                            error[1] = _distance(factor[1], _number(top[0]))
                            if error[1] < error[0]:
                                factor[0] = factor[1]
                                error[0] = error[1]
                    if top[0] == T.uint32(0):
                        factor[0] = T.float32(0)
                    sums[0] = 0
                    for i in T.unroll(_WORDS // _HALF):
                        for j in T.unroll(_HALF):
                            for v in T.unroll(CODES):
                                code[v] = T.Cast("int32", _code(xs[(i * _HALF + j) * CODES + v] * factor[0]))
                                sums[0] = sums[0] + code[v]
                            words[j] = T.uint32(0)
                            for v in T.unroll(CODES):
                                words[j] = words[j] | T.Cast("uint32", (code[v] & 255) << (8 * v))
                        for j in T.vectorized(_HALF):
                            codes[0, vm, vs * _WORDS + i * _HALF + j] = words[j]
                    scale[0, vm, vs] = _number(top[0]) * T.float32(1 / 127)
                    total[0, vm, vs] = sums[0]

    return quantise_rows


def _bits(value: Any) -> Any:
    return T.call_pure_extern("uint32", "as_uint", value)


def _number(bits: Any) -> Any:
    return T.call_pure_extern("float32", "as_float", bits)


def _distance(factor: Any, top: Any) -> Any:
    """How far factor * top is from 127, exactly where factor is near the quotient."""
    return T.call_pure_extern("float32", "fabs", T.fma(T.float32(0) - factor, top, T.float32(127)))


def _code(value: Any) -> Any:
    """The nearest whole number, halves to even, from -127 to 127."""
    return T.call_pure_extern("float32", "rint", T.max(T.min(value, T.float32(127)), T.float32(-127)))


@functools.cache
def linear_int(
    tile: GpuTile,
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
    panel, size, wide, rows = tile.panel, tile.group, *tile.integer_tile(n, zeros)
    blocks, per, steps, per_block = -(-columns // panel), panel // wide, k // STEP, block // STEP
    items, row_tiles = blocks * per, -(-n // rows)
    groups, k_blocks, words = -(-items // size), -(-k // block), k * bits // 32
    parts, part = 8 // bits, bits // 2  # codes in a byte, words of weights in half a step
    zero_shape, ragged = (blocks, k_blocks, panel) if zeros else (1, 1, 1), columns % panel != 0
    half_scale, half_zero = scale_dtype == "float16", zeros and zero_dtype == "float16"
    middle, mask = 1 << (bits - 1), 0x01010101 * ((1 << bits) - 1)

    @T.prim_func(s_tir=True)
    def linear_int(
        x: T.Buffer((1, n, k // CODES), "uint32"),
        x_scale: T.Buffer((1, n, steps), "float32"),
        total: T.Buffer((1, n, steps), "int32"),
        q: T.Buffer((blocks, words, panel), "uint32"),
        scale: T.Buffer((blocks, k_blocks, panel), storage(scale_dtype)),
        zero: T.Buffer(zero_shape, storage(zero_dtype)),
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
                        sums = T.sblock_alloc_buffer((rows, wide), "int32", scope="local")
                        weights = T.sblock_alloc_buffer((_HALF, wide), "uint32", scope="local")
                        factor = T.sblock_alloc_buffer((wide,), "float32", scope="local")
                        if zeros:
                            shift = T.sblock_alloc_buffer((wide,), "float32", scope="local")
                        xs = T.sblock_alloc_buffer((_HALF,), "uint32", scope="local")
                        of_row = T.sblock_alloc_buffer((2,), "float32", scope="local")
                        for m in T.unroll(rows):
                            for v in T.vectorized(wide):
                                acc[m, v] = T.float32(0)
                        for kb in T.serial(k_blocks):
                            if half_scale:
                                factor[T.Ramp(0, 1, wide)] = load_half(
                                    scale, vi // per, kb, vi % per * wide, lanes=wide
                                )
                            else:
                                for v in T.vectorized(wide):
                                    factor[v] = scale[vi // per, kb, vi % per * wide + v]
                            if zeros:
                                if half_zero:
                                    shift[T.Ramp(0, 1, wide)] = load_half(
                                        zero, vi // per, kb, vi % per * wide, lanes=wide
                                    )
                                else:
                                    for v in T.vectorized(wide):
                                        shift[v] = T.cast(zero[vi // per, kb, vi % per * wide + v], "float32")
                                for v in T.vectorized(wide):
                                    shift[v] = factor[v] * (T.float32(middle) - shift[v])
                            for s in T.serial(T.min(per_block, steps - kb * per_block)):
                                for m in T.unroll(rows):
                                    for v in T.vectorized(wide):
                                        sums[m, v] = (
                                            total[0, T.min(vr * rows + m, n - 1), kb * per_block + s] * -middle
                                            if parts > 1
                                            else 0
                                        )
                                for h in T.unroll(2):
                                    for i in T.unroll(part):
                                        for v in T.vectorized(wide):
                                            weights[i * parts, v] = q[
                                                vi // per,
                                                (kb * per_block + s) * bits + h * part + i,
                                                vi % per * wide + v,
                                            ]
                                        if parts > 1:
                                            for j in T.unroll(parts - 1):
                                                for v in T.vectorized(wide):
                                                    weights[i * parts + j + 1, v] = T.shift_right(
                                                        weights[i * parts, v], T.Cast("uint32", bits * (j + 1))
                                                    ) & T.uint32(mask)
                                            for v in T.vectorized(wide):
                                                weights[i * parts, v] = weights[i * parts, v] & T.uint32(mask)
                                    for m in T.unroll(rows):
                                        for e in T.vectorized(_HALF):
                                            xs[e] = x[
                                                0,
                                                T.min(vr * rows + m, n - 1),
                                                (kb * per_block + s) * _WORDS + h * _HALF + e,
                                            ]
                                        for e in T.unroll(_HALF):
                                            for v in T.unroll(wide):
                                                sums[m, v] = dot(weights[e, v], xs[e], sums[m, v])
                                for m in T.unroll(rows):
                                    of_row[0] = x_scale[0, T.min(vr * rows + m, n - 1), kb * per_block + s]
                                    for v in T.vectorized(wide):
                                        acc[m, v] = T.fma(
                                            T.cast(sums[m, v], "float32") * factor[v], of_row[0], acc[m, v]
                                        )
                                    if zeros:
                                        of_row[1] = (
                                            T.cast(total[0, T.min(vr * rows + m, n - 1), kb * per_block + s], "float32")
                                            * of_row[0]
                                        )
                                        for v in T.vectorized(wide):
                                            acc[m, v] = T.fma(shift[v], of_row[1], acc[m, v])
                        for m in T.unroll(rows):
                            if vr * rows + m < n:
                                if ragged:
                                    for v in T.unroll(wide):
                                        if vi * wide + v < columns:
                                            y[0, vr * rows + m, vi * wide + v] = acc[m, v]
                                else:
                                    for v in T.vectorized(wide):
                                        y[0, vr * rows + m, vi * wide + v] = acc[m, v]

    return linear_int
