"""Rotary position embedding with tables of cosines and sines, one row per position."""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.opencl.tile import GpuTile


@functools.cache
def rope(
    tile: GpuTile, n: int, heads: int, head_dim: int, rotary_dim: int, context: int, interleaved: bool = False
) -> Any:
    """The PrimFunc (x[1, n, heads * head_dim], cos, sin[context, rotary_dim / 2], pos, y).

    Rotates pairs (d, d + rotary_dim / 2) of each head by the angle of position pos + row, or, interleaved, pairs
    (2 d, 2 d + 1); values from rotary_dim on pass through.
    """
    return _rope(tile, n, heads, head_dim, rotary_dim, context, interleaved, apart=False)


@functools.cache
def rope_rows(
    tile: GpuTile, n: int, heads: int, head_dim: int, rotary_dim: int, context: int, interleaved: bool = False
) -> Any:
    """The same of rows that each have a position of their own: pos is int64 [n]."""
    return _rope(tile, n, heads, head_dim, rotary_dim, context, interleaved, apart=True)


def _rope(
    tile: GpuTile, n: int, heads: int, head_dim: int, rotary_dim: int, context: int, interleaved: bool, apart: bool
) -> Any:
    half, size = rotary_dim // 2, tile.group
    step, gap = (2, 1) if interleaved else (1, half)  # from pair to pair, and from a pair's first to its second
    lanes = 1 if interleaved else tile.vector(half)
    per, rest = half // lanes, head_dim - rotary_dim
    items, others = n * heads * per, n * heads * rest
    groups, other_groups = -(-items // size), -(-others // size)

    pos_type = T.Buffer((n,), "int64") if apart else T.int64

    def position(pos: Any, row: Any) -> Any:
        return T.Cast("int32", pos[row]) if apart else T.Cast("int32", pos) + row

    @T.prim_func(s_tir=True)
    def rope(
        x: T.Buffer((1, n, heads * head_dim), "float32"),
        cos: T.Buffer((context, half), "float32"),
        sin: T.Buffer((context, half), "float32"),
        pos: pos_type,
        y: T.Buffer((1, n, heads * head_dim), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("pair"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    a = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                    b = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                    c = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                    s = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                    for v in T.vectorized(lanes):
                        a[v] = x[0, vi // (heads * per), vi // per % heads * head_dim + (vi % per * lanes + v) * step]
                    for v in T.vectorized(lanes):
                        b[v] = x[
                            0, vi // (heads * per), vi // per % heads * head_dim + gap + (vi % per * lanes + v) * step
                        ]
                    for v in T.vectorized(lanes):
                        c[v] = cos[position(pos, vi // (heads * per)), vi % per * lanes + v]
                    for v in T.vectorized(lanes):
                        s[v] = sin[position(pos, vi // (heads * per)), vi % per * lanes + v]
                    for v in T.vectorized(lanes):
                        y[0, vi // (heads * per), vi // per % heads * head_dim + (vi % per * lanes + v) * step] = T.fma(
                            a[v], c[v], T.float32(0) - b[v] * s[v]
                        )
                    for v in T.vectorized(lanes):
                        y[
                            0, vi // (heads * per), vi // per % heads * head_dim + gap + (vi % per * lanes + v) * step
                        ] = T.fma(b[v], c[v], a[v] * s[v])
        if rest > 0:
            for g in T.thread_binding(other_groups, thread="blockIdx.x"):
                for t in T.thread_binding(size, thread="threadIdx.x"):
                    with T.sblock("rest"):
                        vi = T.axis.spatial(others, g * size + t)
                        T.where(g * size + t < others)
                        y[0, vi // (heads * rest), vi // rest % heads * head_dim + rotary_dim + vi % rest] = x[
                            0, vi // (heads * rest), vi // rest % heads * head_dim + rotary_dim + vi % rest
                        ]

    return rope
