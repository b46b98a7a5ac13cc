"""Matrix multiplication with block-quantised weights, unpacked inside the kernel: correct at every width.

Weights q are unsigned 4 or 8 bit with one scale and one zero point per `block` values of k and column:
w = (q - zero) * scale in float32, exactly as onnxruntime's MatMulNBits at accuracy level 0 dequantises.

Packed layout, for panels of `panel` columns (columns past N hold zero scales):
  q     8 bit: [blocks, K, panel] uint8;  4 bit: [blocks, K, panel / 2] uint8, column j in the low nibble of byte j,
        column j + panel / 2 in the high nibble
  scale [blocks, K / block, panel]
  zero  [blocks, K / block, panel] uint8, float16 or float32, only where the model has zero points (else 2^(bits-1))
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile


@functools.cache
def linear_nbits(
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
    """The PrimFunc (x, q, scale, zero, y); without zero points pass any [1, 1, 1] uint8 tensor as zero.

    The weights of `unroll` steps of k are dequantised once into registers and used by all rows, so the order of
    the reduction is k upward for every row.
    """
    lanes, vectors, panel = tile.lanes, tile.panel_vectors, tile.panel
    blocks = -(-columns // panel)
    rows = tile.rows(n)
    row_tiles, k_blocks = -(-n // rows), -(-k // block)
    half = vectors // 2 if bits == 4 and vectors > 1 else vectors
    stored = panel // 2 if bits == 4 else panel
    zero_shape = (blocks, k_blocks, panel) if zeros else (1, 1, 1)
    middle = float(1 << (bits - 1))
    ragged = columns % panel != 0
    tail = min(block, k)

    @T.prim_func(s_tir=True)
    def linear_nbits(
        x: T.Buffer((1, n, k), "float32"),
        q: T.Buffer((blocks, k, stored), "uint8"),
        scale: T.Buffer((blocks, k_blocks, panel), scale_dtype),
        zero: T.Buffer(zero_shape, zero_dtype),
        y: T.Buffer((1, n, columns), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for g in T.parallel(blocks):
            for r in T.serial(row_tiles):
                with T.sblock("tile"):
                    vg = T.axis.spatial(blocks, g)
                    vr = T.axis.spatial(row_tiles, r)
                    acc = T.sblock_alloc_buffer((rows, panel), "float32", scope="local")
                    w = T.sblock_alloc_buffer((panel,), "float32", scope="local")
                    for m in T.unroll(rows):
                        for j in T.unroll(vectors):
                            for v in T.vectorized(lanes):
                                acc[m, j * lanes + v] = T.float32(0)
                    for kb in T.serial(k_blocks):
                        for ki in T.serial(T.min(tail, k - kb * block)):
                            for j in T.unroll(half):
                                for v in T.vectorized(lanes):
                                    w[j * lanes + v] = T.cast(
                                        q[vg, kb * block + ki, j * lanes + v] & T.uint8(15)
                                        if bits == 4
                                        else q[vg, kb * block + ki, j * lanes + v],
                                        "float32",
                                    )
                                if bits == 4:
                                    for v in T.vectorized(lanes):
                                        w[panel // 2 + j * lanes + v] = T.cast(
                                            q[vg, kb * block + ki, j * lanes + v] >> T.uint8(4), "float32"
                                        )
                            for j in T.unroll(vectors):
                                for v in T.vectorized(lanes):
                                    w[j * lanes + v] = (
                                        w[j * lanes + v]
                                        - (
                                            T.cast(zero[vg, kb, j * lanes + v], "float32")
                                            if zeros
                                            else T.float32(middle)
                                        )
                                    ) * T.cast(scale[vg, kb, j * lanes + v], "float32")
                                for m in T.unroll(rows):
                                    for v in T.vectorized(lanes):
                                        acc[m, j * lanes + v] = T.fma(
                                            x[0, T.min(vr * rows, n - rows) + m, kb * block + ki],
                                            w[j * lanes + v],
                                            acc[m, j * lanes + v],
                                        )
                    for m in T.unroll(rows):
                        for j in T.unroll(vectors):
                            if ragged:
                                for v in T.serial(lanes):
                                    if (vg * panel + j * lanes + v) < columns:
                                        y[0, T.min(vr * rows, n - rows) + m, vg * panel + j * lanes + v] = acc[
                                            m, j * lanes + v
                                        ]
                            else:
                                for v in T.vectorized(lanes):
                                    y[0, T.min(vr * rows, n - rows) + m, vg * panel + j * lanes + v] = acc[
                                        m, j * lanes + v
                                    ]

    return linear_nbits
