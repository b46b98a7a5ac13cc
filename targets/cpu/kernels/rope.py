"""Rotary position embedding with tables of cosines and sines, one row per position."""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile


@functools.cache
def rope(
    tile: CpuTile, n: int, heads: int, head_dim: int, rotary_dim: int, context: int, interleaved: bool = False
) -> Any:
    """The PrimFunc (x[1, n, heads * head_dim], cos, sin[context, rotary_dim / 2], pos, y).

    Rotates pairs (d, d + rotary_dim / 2) of each head by the angle of position pos + row ("rotate half", Su et
    al. 2021 in the Llama arrangement), or, interleaved, pairs (2 d, 2 d + 1) as in the paper; values from rotary_dim
    on pass through.
    """
    half = rotary_dim // 2
    step, gap = (2, 1) if interleaved else (1, half)  # from pair to pair, and from a pair's first to its second
    lanes = 1 if interleaved else tile.vector(half)
    rest = head_dim - rotary_dim

    @T.prim_func(s_tir=True)
    def rope(
        x: T.Buffer((1, n, heads * head_dim), "float32"),
        cos: T.Buffer((context, half), "float32"),
        sin: T.Buffer((context, half), "float32"),
        pos: T.int64,
        y: T.Buffer((1, n, heads * head_dim), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, h in T.grid(n, heads):
            with T.sblock("head"):
                vm, vh = T.axis.remap("SS", [m, h])
                for i in T.serial(half // lanes):
                    for v in T.vectorized(lanes):
                        y[0, vm, vh * head_dim + (i * lanes + v) * step] = T.fma(
                            x[0, vm, vh * head_dim + (i * lanes + v) * step],
                            cos[pos + vm, i * lanes + v],
                            T.float32(0)
                            - x[0, vm, vh * head_dim + gap + (i * lanes + v) * step] * sin[pos + vm, i * lanes + v],
                        )
                    for v in T.vectorized(lanes):
                        y[0, vm, vh * head_dim + gap + (i * lanes + v) * step] = T.fma(
                            x[0, vm, vh * head_dim + gap + (i * lanes + v) * step],
                            cos[pos + vm, i * lanes + v],
                            x[0, vm, vh * head_dim + (i * lanes + v) * step] * sin[pos + vm, i * lanes + v],
                        )
                for d in T.serial(rest):
                    y[0, vm, vh * head_dim + rotary_dim + d] = x[0, vm, vh * head_dim + rotary_dim + d]

    return rope
