"""Matrix multiplication with block-quantised weights, unpacked in the kernel; layouts as in the CPU's linear_nbits.

One work-item computes 8 neighbouring columns, whose words it reads as one vector. With more than 4 rows it is 4
columns, so that up to 8 rows share one read of the weights. A weight is (q - zero) * scale or table[q] * scale in
float32, exactly as onnxruntime dequantises; k runs upward for every row.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.opencl.kernels import load_half, load_native_half, storage, table_number
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
    table: str = "",
) -> Any:
    """The PrimFunc (x, q, scale, zero, y); without zero points pass any [1, 1, 1] uint8 tensor as zero."""
    panel, size, steps, mask = tile.panel, tile.group, 32 // bits, (1 << bits) - 1
    flipped = 0x80808080 if bits == 8 else 0
    wide, rows = tile.columns(n, 8), tile.rows(n, 8)
    blocks, per = -(-columns // panel), panel // wide
    items, row_tiles = blocks * per, -(-n // rows)
    groups, k_blocks, words, per_block = -(-items // size), -(-k // block), -(-k // steps), block // steps
    unroll = tile.unroll(steps, rows, wide, beside=(3 if zeros else 2) * wide)
    zero_shape, coded = (blocks, k_blocks, panel) if zeros else (1, 1, 1), bool(table)
    middle = float(1 << (bits - 1))
    native = tile.native_half and zero_dtype == "uint8"  # the difference to a fraction is not exact in half
    number = "float16" if native else "float32"
    half_zero, zero_storage = zeros and zero_dtype == "float16", storage(zero_dtype)
    ragged, half_scale, scale_storage = columns % panel != 0, scale_dtype == "float16", storage(scale_dtype)

    @T.prim_func(s_tir=True)
    def linear_nbits(
        x: T.Buffer((1, n, k), "float32"),
        q: T.Buffer((blocks, words, panel), "uint32"),
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
                        word = T.sblock_alloc_buffer((wide,), "uint32", scope="local")
                        code = T.sblock_alloc_buffer((wide,), number, scope="local")
                        xs = T.sblock_alloc_buffer((unroll,), "float32", scope="local")
                        for m in T.unroll(rows):
                            for v in T.vectorized(wide):
                                acc[m, v] = T.float32(0)
                        for kb in T.serial(k_blocks):
                            if half_scale and native:
                                code[T.Ramp(0, 1, wide)] = load_native_half(
                                    scale, vi // per, kb, vi % per * wide, lanes=wide
                                )
                                for v in T.vectorized(wide):
                                    scales[v] = T.cast(code[v], "float32")
                            elif half_scale:
                                scales[T.Ramp(0, 1, wide)] = load_half(
                                    scale, vi // per, kb, vi % per * wide, lanes=wide
                                )
                            else:
                                for v in T.vectorized(wide):
                                    scales[v] = scale[vi // per, kb, vi % per * wide + v]
                            if half_zero:
                                zero_points[T.Ramp(0, 1, wide)] = load_half(
                                    zero, vi // per, kb, vi % per * wide, lanes=wide
                                )
                            else:
                                for v in T.vectorized(wide):
                                    zero_points[v] = (
                                        T.cast(zero[vi // per, kb, vi % per * wide + v], number)
                                        if zeros
                                        else T.cast(T.float32(middle), number)
                                    )
                            for i in T.serial(T.min(per_block, words - kb * per_block)):
                                for v in T.vectorized(wide):
                                    word[v] = q[vi // per, kb * per_block + i, vi % per * wide + v] ^ T.uint32(flipped)
                                for ko in T.serial(steps // unroll):
                                    for ki in T.unroll(unroll):
                                        for v in T.vectorized(wide):
                                            code[v] = T.cast(
                                                (
                                                    word[v]
                                                    >> T.cast(
                                                        (ko * unroll + ki) % 4 * 8 + (ko * unroll + ki) // 4 * bits,
                                                        "uint32",
                                                    )
                                                )
                                                & T.uint32(mask),
                                                number,
                                            )
                                        if coded:
                                            for v in T.unroll(wide):
                                                weights[ki, v] = (
                                                    table_number(T.cast(code[v], "int32"), table) * scales[v]
                                                )
                                        else:
                                            for v in T.vectorized(wide):
                                                code[v] = code[v] - zero_points[v]
                                            for v in T.vectorized(wide):
                                                weights[ki, v] = T.cast(code[v], "float32") * scales[v]
                                    for m in T.unroll(rows):
                                        for ki in T.vectorized(unroll):
                                            xs[ki] = (
                                                x[
                                                    0,
                                                    T.min(vr * rows + m, n - 1),
                                                    (kb * per_block + i) * steps + ko * unroll + ki,
                                                ]
                                                if k % steps == 0
                                                else T.if_then_else(
                                                    (kb * per_block + i) * steps + ko * unroll + ki < k,
                                                    x[
                                                        0,
                                                        T.min(vr * rows + m, n - 1),
                                                        T.min((kb * per_block + i) * steps + ko * unroll + ki, k - 1),
                                                    ],
                                                    T.float32(0),
                                                )
                                            )
                                        for ki in T.unroll(unroll):
                                            for v in T.vectorized(wide):
                                                acc[m, v] = T.fma(xs[ki], weights[ki, v], acc[m, v])
                        for m in T.unroll(rows):
                            if vr * rows + m < n:
                                if ragged:
                                    for v in T.unroll(wide):
                                        if vi * wide + v < columns:
                                            y[0, vr * rows + m, vi * wide + v] = acc[m, v]
                                else:
                                    for v in T.vectorized(wide):
                                        y[0, vr * rows + m, vi * wide + v] = acc[m, v]

    return linear_nbits
