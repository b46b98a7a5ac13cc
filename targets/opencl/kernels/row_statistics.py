"""Kernels that move a row by its own statistics: to another row's magnitude, or below a bound to zero.

Sums of 64 values each come first; then every work-item adds those up in order and moves one value. Neither cut depends
on the number of rows.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.opencl.kernels.norm import PART, partial_sums
from targets.opencl.tile import GpuTile


@functools.cache
def match_magnitude(tile: GpuTile, n: int, width: int, least: float) -> Any:
    """The PrimFunc (x, r, y, sums[2, n, partial_sums]), x, r and y of [1, n, width].

    y = x sqrt(mean(r^2)) / sqrt(max(mean(x^2), least)).
    """
    size, sums_of = tile.group, partial_sums(width)
    folds, items = n * sums_of, n * width
    fold_groups, item_groups = -(-folds // size), -(-items // size)

    @T.prim_func(s_tir=True)
    def match_magnitude(
        x: T.Buffer((1, n, width), "float32"),
        r: T.Buffer((1, n, width), "float32"),
        y: T.Buffer((1, n, width), "float32"),
        sums: T.Buffer((2, n, sums_of), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(fold_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("squares"):
                    vi = T.axis.spatial(folds, g * size + t)
                    T.where(g * size + t < folds)
                    total = T.sblock_alloc_buffer((2,), "float32", scope="local")
                    total[0] = T.float32(0)
                    total[1] = T.float32(0)
                    for i in T.serial(T.min(PART, width - vi % sums_of * PART)):
                        total[0] = T.fma(
                            x[0, vi // sums_of, vi % sums_of * PART + i],
                            x[0, vi // sums_of, vi % sums_of * PART + i],
                            total[0],
                        )
                        total[1] = T.fma(
                            r[0, vi // sums_of, vi % sums_of * PART + i],
                            r[0, vi // sums_of, vi % sums_of * PART + i],
                            total[1],
                        )
                    sums[0, vi // sums_of, vi % sums_of] = total[0]
                    sums[1, vi // sums_of, vi % sums_of] = total[1]
        for g in T.thread_binding(item_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("scale"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    total = T.sblock_alloc_buffer((2,), "float32", scope="local")
                    total[0] = T.float32(0)
                    total[1] = T.float32(0)
                    for i in T.serial(sums_of):
                        total[0] = total[0] + sums[0, vi // width, i]
                        total[1] = total[1] + sums[1, vi // width, i]
                    y[0, vi // width, vi % width] = x[0, vi // width, vi % width] * (
                        T.sqrt(total[1] * T.float32(1.0 / width))
                        / T.sqrt(T.max(total[0] * T.float32(1.0 / width), T.float32(least)))
                    )

    return match_magnitude


@functools.cache
def gaussian_top_k(tile: GpuTile, n: int, width: int, deviations: float) -> Any:
    """The PrimFunc (x, y, sums[n, partial_sums], squares[n, partial_sums]), x and y of [1, n, width].

    y = max(x - mean - deviations * standard deviation, 0).
    """
    size, sums_of = tile.group, partial_sums(width)
    folds, items = n * sums_of, n * width
    fold_groups, item_groups = -(-folds // size), -(-items // size)

    @T.prim_func(s_tir=True)
    def gaussian_top_k(
        x: T.Buffer((1, n, width), "float32"),
        y: T.Buffer((1, n, width), "float32"),
        sums: T.Buffer((n, sums_of), "float32"),
        squares: T.Buffer((n, sums_of), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(fold_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("sums"):
                    vi = T.axis.spatial(folds, g * size + t)
                    T.where(g * size + t < folds)
                    total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    total[0] = T.float32(0)
                    for i in T.serial(T.min(PART, width - vi % sums_of * PART)):
                        total[0] = total[0] + x[0, vi // sums_of, vi % sums_of * PART + i]
                    sums[vi // sums_of, vi % sums_of] = total[0]
        for g in T.thread_binding(fold_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("squares"):
                    vi = T.axis.spatial(folds, g * size + t)
                    T.where(g * size + t < folds)
                    total = T.sblock_alloc_buffer((2,), "float32", scope="local")
                    total[0] = T.float32(0)
                    for i in T.serial(sums_of):
                        total[0] = total[0] + sums[vi // sums_of, i]
                    total[0] = total[0] * T.float32(1.0 / width)
                    total[1] = T.float32(0)
                    for i in T.serial(T.min(PART, width - vi % sums_of * PART)):
                        total[1] = T.fma(
                            x[0, vi // sums_of, vi % sums_of * PART + i] - total[0],
                            x[0, vi // sums_of, vi % sums_of * PART + i] - total[0],
                            total[1],
                        )
                    squares[vi // sums_of, vi % sums_of] = total[1]
        for g in T.thread_binding(item_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("above"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    total = T.sblock_alloc_buffer((2,), "float32", scope="local")
                    total[0] = T.float32(0)
                    total[1] = T.float32(0)
                    for i in T.serial(sums_of):
                        total[0] = total[0] + sums[vi // width, i]
                        total[1] = total[1] + squares[vi // width, i]
                    total[0] = total[0] * T.float32(1.0 / width) + T.sqrt(
                        total[1] * T.float32(1.0 / width)
                    ) * T.float32(deviations)
                    y[0, vi // width, vi % width] = T.Select(
                        x[0, vi // width, vi % width] < total[0],
                        T.float32(0),
                        x[0, vi // width, vi % width] - total[0],
                    )

    return gaussian_top_k
