"""Matrix product with block-quantised weights, unpacked in the kernel; layouts as in the CPU's linear_nbits.

One work-item computes 8 columns, j and j + panel / 2 for four j, because those share bytes at 4 bits. A weight is
(q - zero) * scale in float32, exactly as onnxruntime dequantises; k runs upward for every row.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.mali.kernels import load_half, storage
from targets.mali.tile import GpuTile


@functools.cache
def linear_nbits(
    tile: GpuTile, n: int, k: int, columns: int, bits: int, block: int, scale_dtype: str, zeros: bool
) -> Any:
    """The PrimFunc (x, q, scale, zero, y); without zero points pass any [1, 1, 1] uint8 tensor as zero."""
    panel, size, half = tile.panel, tile.group, tile.panel // 2
    blocks, per = -(-columns // panel), half // 4
    items, rows = blocks * per, tile.rows(n, 8)
    row_tiles, groups = -(-n // rows), -(-items // size)
    k_blocks, tail = -(-k // block), min(block, k)
    stored = half if bits == 4 else panel
    zero_shape = (blocks, k_blocks, panel) if zeros else (1, 1, 1)
    middle = float(1 << (bits - 1))
    ragged, half_scale, scale_storage = columns % panel != 0, scale_dtype == "float16", storage(scale_dtype)

    @T.prim_func(s_tir=True)
    def linear_nbits(
        x: T.Buffer((1, n, k), "float32"),
        q: T.Buffer((blocks, k, stored), "uint8"),
        scale: T.Buffer((blocks, k_blocks, panel), scale_storage),
        zero: T.Buffer(zero_shape, "uint8"),
        y: T.Buffer((1, n, columns), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for r in T.thread_binding(row_tiles, thread="blockIdx.y"):
            for b in T.thread_binding(groups, thread="blockIdx.x"):
                for t in T.thread_binding(size, thread="threadIdx.x"):
                    with T.sblock("tile"):
                        vr = T.axis.spatial(row_tiles, r)
                        vi = T.axis.spatial(items, b * size + t)
                        T.where(b * size + t < items)
                        acc = T.sblock_alloc_buffer((rows, 8), "float32", scope="local")
                        now = T.sblock_alloc_buffer((8,), "float32", scope="local")
                        by = T.sblock_alloc_buffer((8,), "float32", scope="local")
                        at = T.sblock_alloc_buffer((8,), "float32", scope="local")
                        for m in T.unroll(rows):
                            for j in T.unroll(2):
                                for v in T.vectorized(4):
                                    acc[m, j * 4 + v] = T.float32(0)
                        for kb in T.serial(k_blocks):
                            for j in T.unroll(2):
                                if half_scale:
                                    by[T.Ramp(j * 4, 1, 4)] = load_half(
                                        scale, vi // per, kb, j * half + vi % per * 4, lanes=4
                                    )
                                else:
                                    for v in T.vectorized(4):
                                        by[j * 4 + v] = scale[vi // per, kb, j * half + vi % per * 4 + v]
                                for v in T.vectorized(4):
                                    at[j * 4 + v] = (
                                        T.cast(zero[vi // per, kb, j * half + vi % per * 4 + v], "float32")
                                        if zeros
                                        else T.float32(middle)
                                    )
                            for ki in T.serial(T.min(tail, k - kb * block)):
                                for j in T.unroll(2):
                                    for v in T.vectorized(4):
                                        now[j * 4 + v] = T.cast(
                                            (
                                                (q[vi // per, kb * block + ki, vi % per * 4 + v] >> T.uint8(4))
                                                if j == 1
                                                else (q[vi // per, kb * block + ki, vi % per * 4 + v] & T.uint8(15))
                                            )
                                            if bits == 4
                                            else q[vi // per, kb * block + ki, j * half + vi % per * 4 + v],
                                            "float32",
                                        )
                                    for v in T.vectorized(4):
                                        now[j * 4 + v] = (now[j * 4 + v] - at[j * 4 + v]) * by[j * 4 + v]
                                    for m in T.unroll(rows):
                                        for v in T.vectorized(4):
                                            acc[m, j * 4 + v] = T.fma(
                                                x[0, T.min(vr * rows + m, n - 1), kb * block + ki],
                                                now[j * 4 + v],
                                                acc[m, j * 4 + v],
                                            )
                        for m in T.unroll(rows):
                            if vr * rows + m < n:
                                for j in T.unroll(2):
                                    if ragged:
                                        for v in T.unroll(4):
                                            if vi // per * panel + j * half + vi % per * 4 + v < columns:
                                                y[
                                                    0,
                                                    vr * rows + m,
                                                    vi // per * panel + j * half + vi % per * 4 + v,
                                                ] = acc[m, j * 4 + v]
                                    else:
                                        for v in T.vectorized(4):
                                            y[0, vr * rows + m, vi // per * panel + j * half + vi % per * 4 + v] = acc[
                                                m, j * 4 + v
                                            ]

    return linear_nbits
