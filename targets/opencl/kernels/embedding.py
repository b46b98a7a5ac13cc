"""Embedding lookup from packed panels, so that a tied head and the embedding share one tensor."""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.opencl.kernels import load_half, storage
from targets.opencl.tile import GpuTile


@functools.cache
def embedding(tile: GpuTile, n: int, vocab: int, width: int, dtype: str) -> Any:
    """The PrimFunc (w[ceil(vocab / panel), width, panel], ids[1, n] int64, y[1, n, width]); float16 as uint16."""
    panel, size, half, stored = tile.panel, tile.group, dtype == "float16", storage(dtype)
    blocks, items = -(-vocab // panel), n * width
    groups = -(-items // size)

    @T.prim_func(s_tir=True)
    def embedding(
        w: T.Buffer((blocks, width, panel), stored),
        ids: T.Buffer((1, n), "int64"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("value"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    if half:
                        y[0, vi // width, vi % width] = load_half(
                            w,
                            T.Cast("int32", ids[0, vi // width]) // panel,
                            vi % width,
                            T.Cast("int32", ids[0, vi // width]) % panel,
                        )
                    else:
                        y[0, vi // width, vi % width] = w[
                            T.Cast("int32", ids[0, vi // width]) // panel,
                            vi % width,
                            T.Cast("int32", ids[0, vi // width]) % panel,
                        ]

    return embedding


@functools.cache
def embedding_nbits(
    tile: GpuTile,
    n: int,
    vocab: int,
    width: int,
    bits: int,
    block: int,
    scale_dtype: str,
    zeros: bool,
    zero_dtype: str = "uint8",
) -> Any:
    """The PrimFunc (q, scale, zero, ids[1, n] int64, y[1, n, width]); layouts as in linear_nbits."""
    panel, size, steps, mask = tile.panel, tile.group, 32 // bits, (1 << bits) - 1
    flipped = 0x80808080 if bits == 8 else 0
    blocks, k_blocks, items = -(-vocab // panel), -(-width // block), n * width
    groups, words = -(-items // size), -(-width // steps)
    scale_storage, half_scale = storage(scale_dtype), scale_dtype == "float16"
    zero_shape = (blocks, k_blocks, panel) if zeros else (1, 1, 1)
    half_zero, zero_storage = zeros and zero_dtype == "float16", storage(zero_dtype)
    middle = float(1 << (bits - 1))

    @T.prim_func(s_tir=True)
    def embedding_nbits(
        q: T.Buffer((blocks, words, panel), "uint32"),
        scale: T.Buffer((blocks, k_blocks, panel), scale_storage),
        zero: T.Buffer(zero_shape, zero_storage),
        ids: T.Buffer((1, n), "int64"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("value"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    row = T.sblock_alloc_buffer((1,), "int32", scope="local")
                    value = T.sblock_alloc_buffer((3,), "float32", scope="local")
                    row[0] = T.Cast("int32", ids[0, vi // width])
                    value[0] = T.Cast(
                        "float32",
                        (
                            (q[row[0] // panel, vi % width // steps, row[0] % panel] ^ T.uint32(flipped))
                            >> T.Cast("uint32", vi % width % 4 * 8 + vi % width % steps // 4 * bits)
                        )
                        & T.uint32(mask),
                    )
                    if half_zero:
                        value[1] = load_half(zero, row[0] // panel, vi % width // block, row[0] % panel)
                    elif zeros:
                        value[1] = T.Cast("float32", zero[row[0] // panel, vi % width // block, row[0] % panel])
                    else:
                        value[1] = T.float32(middle)
                    if half_scale:
                        value[2] = load_half(scale, row[0] // panel, vi % width // block, row[0] % panel)
                    else:
                        value[2] = scale[row[0] // panel, vi % width // block, row[0] % panel]
                    y[0, vi // width, vi % width] = (value[0] - value[1]) * value[2]

    return embedding_nbits
