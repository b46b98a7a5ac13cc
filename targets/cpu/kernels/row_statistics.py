"""Kernels that move a row by its own statistics: to another row's magnitude, or below a bound to zero.

Sums run over a fixed number of lanes and fold them in order, whatever the number of rows.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile


@functools.cache
def match_magnitude(tile: CpuTile, n: int, width: int, least: float) -> Any:
    """The PrimFunc (x, r, y), all of [1, n, width]: y = x sqrt(mean(r^2)) / sqrt(max(mean(x^2), least))."""
    lanes = tile.vector(width)

    @T.prim_func(s_tir=True)
    def match_magnitude(
        x: T.Buffer((1, n, width), "float32"),
        r: T.Buffer((1, n, width), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m in T.serial(n):
            with T.sblock("row"):
                vm = T.axis.spatial(n, m)
                own = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                other = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                total = T.sblock_alloc_buffer((2,), "float32", scope="local")
                for v in T.vectorized(lanes):
                    own[v] = T.float32(0)
                    other[v] = T.float32(0)
                for i in T.serial(width // lanes):
                    for v in T.vectorized(lanes):
                        own[v] = T.fma(x[0, vm, i * lanes + v], x[0, vm, i * lanes + v], own[v])
                        other[v] = T.fma(r[0, vm, i * lanes + v], r[0, vm, i * lanes + v], other[v])
                total[0] = T.float32(0)
                total[1] = T.float32(0)
                for v in T.unroll(lanes):
                    total[0] = total[0] + own[v]
                    total[1] = total[1] + other[v]
                total[0] = T.sqrt(total[1] * T.float32(1.0 / width)) / T.sqrt(
                    T.max(total[0] * T.float32(1.0 / width), T.float32(least))
                )
                for i in T.serial(width // lanes):
                    for v in T.vectorized(lanes):
                        y[0, vm, i * lanes + v] = x[0, vm, i * lanes + v] * total[0]

    return match_magnitude


@functools.cache
def gaussian_top_k(tile: CpuTile, n: int, width: int, deviations: float) -> Any:
    """The PrimFunc (x, y), both of [1, n, width]: y = max(x - mean - deviations * standard deviation, 0)."""
    lanes = tile.vector(width)

    @T.prim_func(s_tir=True)
    def gaussian_top_k(x: T.Buffer((1, n, width), "float32"), y: T.Buffer((1, n, width), "float32")):
        T.func_attr({"tirx.noalias": True})
        for m in T.serial(n):
            with T.sblock("row"):
                vm = T.axis.spatial(n, m)
                acc = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                bound = T.sblock_alloc_buffer((2,), "float32", scope="local")
                for v in T.vectorized(lanes):
                    acc[v] = T.float32(0)
                for i in T.serial(width // lanes):
                    for v in T.vectorized(lanes):
                        acc[v] = acc[v] + x[0, vm, i * lanes + v]
                bound[0] = T.float32(0)
                for v in T.unroll(lanes):
                    bound[0] = bound[0] + acc[v]
                bound[0] = bound[0] * T.float32(1.0 / width)
                for v in T.vectorized(lanes):
                    acc[v] = T.float32(0)
                for i in T.serial(width // lanes):
                    for v in T.vectorized(lanes):
                        acc[v] = T.fma(x[0, vm, i * lanes + v] - bound[0], x[0, vm, i * lanes + v] - bound[0], acc[v])
                bound[1] = T.float32(0)
                for v in T.unroll(lanes):
                    bound[1] = bound[1] + acc[v]
                bound[0] = bound[0] + T.sqrt(bound[1] * T.float32(1.0 / width)) * T.float32(deviations)
                for i in T.serial(width // lanes):
                    for v in T.vectorized(lanes):
                        y[0, vm, i * lanes + v] = T.Select(
                            x[0, vm, i * lanes + v] < bound[0], T.float32(0), x[0, vm, i * lanes + v] - bound[0]
                        )

    return gaussian_top_k
