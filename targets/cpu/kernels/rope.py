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
    half, turn = rotary_dim // 2, _turn(tile, head_dim, rotary_dim, interleaved)

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
                turn(x, cos, sin, y, vm, vh, pos + vm)

    return rope


@functools.cache
def rope_rows(
    tile: CpuTile, n: int, heads: int, head_dim: int, rotary_dim: int, context: int, interleaved: bool = False
) -> Any:
    """The same of rows that each have a position of their own: pos is int64 [n]."""
    half, turn = rotary_dim // 2, _turn(tile, head_dim, rotary_dim, interleaved)

    @T.prim_func(s_tir=True)
    def rope_rows(
        x: T.Buffer((1, n, heads * head_dim), "float32"),
        cos: T.Buffer((context, half), "float32"),
        sin: T.Buffer((context, half), "float32"),
        pos: T.Buffer((n,), "int64"),
        y: T.Buffer((1, n, heads * head_dim), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, h in T.grid(n, heads):
            with T.sblock("head"):
                vm, vh = T.axis.remap("SS", [m, h])
                turn(x, cos, sin, y, vm, vh, pos[vm])

    return rope_rows


def _turn(tile: CpuTile, head_dim: int, rotary_dim: int, interleaved: bool) -> Any:
    """A macro that rotates a head of row `row`, which is at `position`."""
    half = rotary_dim // 2
    step, gap = (2, 1) if interleaved else (1, half)  # from pair to pair, and from a pair's first to its second
    lanes = 1 if interleaved else tile.vector(half)
    rest = head_dim - rotary_dim

    @T.inline
    def turn(x, cos, sin, y, row, head, position):  # type: ignore[no-untyped-def]
        for i in T.serial(half // lanes):
            for v in T.vectorized(lanes):
                y[0, row, head * head_dim + (i * lanes + v) * step] = T.fma(
                    x[0, row, head * head_dim + (i * lanes + v) * step],
                    cos[position, i * lanes + v],
                    T.float32(0)
                    - x[0, row, head * head_dim + gap + (i * lanes + v) * step] * sin[position, i * lanes + v],
                )
            for v in T.vectorized(lanes):
                y[0, row, head * head_dim + gap + (i * lanes + v) * step] = T.fma(
                    x[0, row, head * head_dim + gap + (i * lanes + v) * step],
                    cos[position, i * lanes + v],
                    x[0, row, head * head_dim + (i * lanes + v) * step] * sin[position, i * lanes + v],
                )
        for d in T.serial(rest):
            y[0, row, head * head_dim + rotary_dim + d] = x[0, row, head * head_dim + rotary_dim + d]

    return turn
