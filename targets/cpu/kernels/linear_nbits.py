"""Matrix multiplication with block-quantised weights, unpacked inside the kernel: correct at every width.

Weights q are unsigned 2, 4 or 8 bit with one scale and one zero point per `block` values of k and column:
w = (q - zero) * scale in float32, exactly as onnxruntime's MatMulNBits at accuracy level 0 dequantises. With a table
of targets/kernels/code_tables.py, w = table[q] * scale, as MatMulBnb4 does.

Packed layout, for panels of `panel` columns (columns past N hold zero scales):
  q     [blocks, ceil(K / steps), panel] uint32: a word holds `steps` = 32 / bits values of a column along k. Of byte t,
        lowest first, 8 bit: value t less 128 in two's complement; 4 bit: value t in the low, value t + 4 in the high
        nibble; 2 bit: values t, t + 4, t + 8, t + 12, the first in the lowest bits
  scale [blocks, K / block, panel]
  zero  [blocks, K / block, panel] uint8, float16 or float32, only where the model has zero points (else 2^(bits-1))
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.kernels.table_lookup import lookup
from targets.cpu.tile import CpuTile
from targets.kernels.code_tables import number_of


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
    table: str = "",
) -> Any:
    """The PrimFunc (x, q, scale, zero, y); without zero points pass any [1, 1, 1] uint8 tensor as zero.

    A word's values are dequantised one after the other and used by all rows, so the order of the reduction is k upward
    for every row.
    """
    lanes, vectors, panel = tile.lanes, tile.panel_vectors, tile.panel
    blocks = -(-columns // panel)
    rows, steps = tile.rows(n), 32 // bits
    row_tiles, k_blocks = -(-n // rows), -(-k // block)
    words, per_block, last = -(-k // steps), block // steps, k % steps
    zero_shape = (blocks, k_blocks, panel) if zeros else (1, 1, 1)
    middle = float(1 << (bits - 1))
    ragged = columns % panel != 0
    find = lookup(tile) if table else None
    permuted = find is not None
    mask, flipped = (1 << bits) - 1, 0x80808080 if bits == 8 else 0

    @T.prim_func(s_tir=True)
    def linear_nbits(
        x: T.Buffer((1, n, k), "float32"),
        q: T.Buffer((blocks, words, panel), "uint32"),
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
                        for i in T.serial(T.min(per_block, words - kb * per_block)):
                            for step in T.unroll(steps):
                                for j in T.unroll(vectors):
                                    if permuted:
                                        w[T.ramp(j * lanes, 1, lanes)] = find(
                                            q[vg, kb * per_block + i, T.ramp(j * lanes, 1, lanes)],
                                            step % 4 * 8 + step // 4 * bits,
                                            table,
                                        ) * T.cast(scale[vg, kb, T.ramp(j * lanes, 1, lanes)], f"float32x{lanes}")
                                    else:
                                        for v in T.vectorized(lanes):
                                            w[j * lanes + v] = number_of(
                                                T.cast(
                                                    (
                                                        (q[vg, kb * per_block + i, j * lanes + v] ^ T.uint32(flipped))
                                                        >> T.uint32(step % 4 * 8 + step // 4 * bits)
                                                    )
                                                    & T.uint32(mask),
                                                    "int32",
                                                ),
                                                T.cast(zero[vg, kb, j * lanes + v], "float32")
                                                if zeros
                                                else T.float32(middle),
                                                table,
                                            ) * T.cast(scale[vg, kb, j * lanes + v], "float32")
                                    for m in T.unroll(rows):
                                        for v in T.vectorized(lanes):
                                            acc[m, j * lanes + v] = T.fma(
                                                x[
                                                    0,
                                                    T.min(vr * rows, n - rows) + m,
                                                    (kb * per_block + i) * steps + step,
                                                ]
                                                if last == 0
                                                else T.if_then_else(
                                                    (kb * per_block + i) * steps + step < k,
                                                    x[
                                                        0,
                                                        T.min(vr * rows, n - rows) + m,
                                                        T.min((kb * per_block + i) * steps + step, k - 1),
                                                    ],
                                                    T.float32(0),
                                                ),
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
