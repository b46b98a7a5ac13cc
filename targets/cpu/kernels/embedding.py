"""Embedding lookup from packed panels, so that a tied head and the embedding share one tensor."""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile


@functools.cache
def embedding(tile: CpuTile, n: int, vocab: int, width: int, dtype: str) -> Any:
    """The PrimFunc (w[ceil(vocab / panel), width, panel], ids[1, n] int64, y[1, n, width])."""
    panel = tile.panel
    blocks = -(-vocab // panel)

    @T.prim_func(s_tir=True)
    def embedding(
        w: T.Buffer((blocks, width, panel), dtype),
        ids: T.Buffer((1, n), "int64"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, width):
            with T.sblock("value"):
                vm, vi = T.axis.remap("SS", [m, i])
                y[0, vm, vi] = T.cast(w[ids[0, vm] // panel, vi, ids[0, vm] % panel], "float32")

    return embedding


@functools.cache
def embedding_nbits(
    tile: CpuTile,
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
    panel, steps, mask = tile.panel, 32 // bits, (1 << bits) - 1
    flipped = 0x80808080 if bits == 8 else 0
    blocks, k_blocks, words = -(-vocab // panel), -(-width // block), -(-width // steps)
    zero_shape = (blocks, k_blocks, panel) if zeros else (1, 1, 1)
    middle = float(1 << (bits - 1))

    @T.prim_func(s_tir=True)
    def embedding_nbits(
        q: T.Buffer((blocks, words, panel), "uint32"),
        scale: T.Buffer((blocks, k_blocks, panel), scale_dtype),
        zero: T.Buffer(zero_shape, zero_dtype),
        ids: T.Buffer((1, n), "int64"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, width):
            with T.sblock("value"):
                vm, vi = T.axis.remap("SS", [m, i])
                y[0, vm, vi] = (
                    T.cast(
                        (
                            (q[ids[0, vm] // panel, vi // steps, ids[0, vm] % panel] ^ T.uint32(flipped))
                            >> T.cast(vi % 4 * 8 + vi % steps // 4 * bits, "uint32")
                        )
                        & T.uint32(mask),
                        "float32",
                    )
                    - (
                        T.cast(zero[ids[0, vm] // panel, vi // block, ids[0, vm] % panel], "float32")
                        if zeros
                        else T.float32(middle)
                    )
                ) * T.cast(scale[ids[0, vm] // panel, vi // block, ids[0, vm] % panel], "float32")

    return embedding_nbits
