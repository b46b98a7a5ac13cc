"""Matrix multiplication with block-quantised weights, unpacked in the kernel; layouts as in the CPU's linear_nbits.

One work-item computes 8 columns: neighbours at 8 bits, j and j + panel / 2 for four j at 4 bits, because those share
bytes. With more than 4 rows it is 4 columns, so that up to 8 rows share one read of the weights. A weight is
(q - zero) * scale in float32, exactly as onnxruntime dequantises; k runs upward for every row.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from tvm.script import tirx as T

from targets.opencl.kernels import load_half, load_native_half, storage
from targets.opencl.tile import GpuTile


@functools.cache
def linear_nbits(
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
    """The PrimFunc (x, q, scale, zero, y); without zero points pass any [1, 1, 1] uint8 tensor as zero."""
    panel, size, half = tile.panel, tile.group, tile.panel // 2
    wide, rows = tile.columns(n, 8), tile.rows(n, 8)
    parts = 2 if bits == 4 else 1
    lanes, blocks, per = wide // parts, -(-columns // panel), panel // wide
    items, row_tiles = blocks * per, -(-n // rows)
    groups, k_blocks, tail = -(-items // size), -(-k // block), min(block, k)
    unroll = tile.unroll(math.gcd(k, tail), rows, wide, beside=(2 if zeros else 1) * wide)
    stored = half if bits == 4 else panel
    zero_shape = (blocks, k_blocks, panel) if zeros else (1, 1, 1)
    middle = float(1 << (bits - 1))
    native = tile.native_half and zero_dtype == "uint8"  # the difference to a fraction is not exact in half
    number = "float16" if native else "float32"
    half_zero, zero_storage = zeros and zero_dtype == "float16", storage(zero_dtype)
    ragged, half_scale, scale_storage = columns % panel != 0, scale_dtype == "float16", storage(scale_dtype)

    @T.prim_func(s_tir=True)
    def linear_nbits(
        x: T.Buffer((1, n, k), "float32"),
        q: T.Buffer((blocks, k, stored), "uint8"),
        scale: T.Buffer((blocks, k_blocks, panel), scale_storage),
        zero: T.Buffer(zero_shape, zero_storage),
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
                        scales = T.sblock_alloc_buffer((wide,), "float32", scope="local")
                        zero_points = T.sblock_alloc_buffer((wide,), number, scope="local")
                        code = T.sblock_alloc_buffer((wide,), number, scope="local")
                        xs = T.sblock_alloc_buffer((unroll,), "float32", scope="local")
                        for m in T.unroll(rows):
                            for v in T.vectorized(wide):
                                acc[m, v] = T.float32(0)
                        for kb in T.serial(k_blocks):
                            for j in T.unroll(parts):
                                if half_scale and native:
                                    code[T.Ramp(j * lanes, 1, lanes)] = load_native_half(
                                        scale, vi // per, kb, j * half + vi % per * lanes, lanes=lanes
                                    )
                                    for v in T.vectorized(lanes):
                                        scales[j * lanes + v] = T.cast(code[j * lanes + v], "float32")
                                elif half_scale:
                                    scales[T.Ramp(j * lanes, 1, lanes)] = load_half(
                                        scale, vi // per, kb, j * half + vi % per * lanes, lanes=lanes
                                    )
                                else:
                                    for v in T.vectorized(lanes):
                                        scales[j * lanes + v] = scale[vi // per, kb, j * half + vi % per * lanes + v]
                                if half_zero:
                                    zero_points[T.Ramp(j * lanes, 1, lanes)] = load_half(
                                        zero, vi // per, kb, j * half + vi % per * lanes, lanes=lanes
                                    )
                                else:
                                    for v in T.vectorized(lanes):
                                        zero_points[j * lanes + v] = (
                                            T.cast(zero[vi // per, kb, j * half + vi % per * lanes + v], number)
                                            if zeros
                                            else T.cast(T.float32(middle), number)
                                        )
                            for ko in T.serial(T.min(tail, k - kb * block) // unroll):
                                for ki in T.unroll(unroll):
                                    for j in T.unroll(parts):
                                        for v in T.vectorized(lanes):
                                            code[j * lanes + v] = T.cast(
                                                (
                                                    (
                                                        q[
                                                            vi // per,
                                                            kb * block + ko * unroll + ki,
                                                            vi % per * lanes + v,
                                                        ]
                                                        >> T.uint8(4)
                                                    )
                                                    if j == 1
                                                    else (
                                                        q[
                                                            vi // per,
                                                            kb * block + ko * unroll + ki,
                                                            vi % per * lanes + v,
                                                        ]
                                                        & T.uint8(15)
                                                    )
                                                )
                                                if bits == 4
                                                else q[
                                                    vi // per,
                                                    kb * block + ko * unroll + ki,
                                                    j * half + vi % per * lanes + v,
                                                ],
                                                number,
                                            )
                                    for v in T.vectorized(wide):
                                        code[v] = code[v] - zero_points[v]
                                    for v in T.vectorized(wide):
                                        weights[ki, v] = T.cast(code[v], "float32") * scales[v]
                                for m in T.unroll(rows):
                                    for i in T.vectorized(unroll):
                                        xs[i] = x[0, T.min(vr * rows + m, n - 1), kb * block + ko * unroll + i]
                                    for ki in T.unroll(unroll):
                                        for v in T.vectorized(wide):
                                            acc[m, v] = T.fma(xs[ki], weights[ki, v], acc[m, v])
                        for m in T.unroll(rows):
                            if vr * rows + m < n:
                                for j in T.unroll(parts):
                                    if ragged:
                                        for v in T.unroll(lanes):
                                            if vi // per * panel + j * half + vi % per * lanes + v < columns:
                                                y[
                                                    0,
                                                    vr * rows + m,
                                                    vi // per * panel + j * half + vi % per * lanes + v,
                                                ] = acc[m, j * lanes + v]
                                    else:
                                        for v in T.vectorized(lanes):
                                            y[0, vr * rows + m, vi // per * panel + j * half + vi % per * lanes + v] = (
                                                acc[m, j * lanes + v]
                                            )

    return linear_nbits
