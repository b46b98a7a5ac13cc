"""RMS normalisation, alone and fused with the residual addition before it, and layer normalisation.

RMS normalisation is two kernels: sums of squares of 64 values each, then every work-item adds those up in order and
scales one vector. Neither cut depends on the number of rows. Layer normalisation, which small models have, is one.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.opencl.tile import GpuTile

PART = 64


def partial_sums(width: int) -> int:
    """Sums of squares that are kept for a row, or part of a row, of `width` values."""
    return -(-width // PART)


@functools.cache
def rms_norm(tile: GpuTile, n: int, width: int, groups: int, eps: float) -> Any:
    """The PrimFunc (x[1, n, width], w[width / groups], y, sums[n * groups, partial_sums]).

    Each of `groups` equal parts of a row is normalised alone: y = x / sqrt(mean(x^2) + eps) * w.
    """
    part, size = width // groups, tile.group
    lanes, sums_of = tile.vector(part), partial_sums(part)
    folds, items = n * groups * sums_of, n * width // lanes
    fold_groups, item_groups, per = -(-folds // size), -(-items // size), part // lanes

    @T.prim_func(s_tir=True)
    def rms_norm(
        x: T.Buffer((1, n, width), "float32"),
        w: T.Buffer((part,), "float32"),
        y: T.Buffer((1, n, width), "float32"),
        sums: T.Buffer((n * groups, sums_of), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(fold_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("squares"):
                    vi = T.axis.spatial(folds, g * size + t)
                    T.where(g * size + t < folds)
                    acc = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                    total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    for v in T.vectorized(lanes):
                        acc[v] = T.float32(0)
                    for i in T.serial(T.min(PART, part - vi % sums_of * PART) // lanes):
                        for v in T.vectorized(lanes):
                            acc[v] = T.fma(
                                x[
                                    0,
                                    vi // sums_of // groups,
                                    vi // sums_of % groups * part + vi % sums_of * PART + i * lanes + v,
                                ],
                                x[
                                    0,
                                    vi // sums_of // groups,
                                    vi // sums_of % groups * part + vi % sums_of * PART + i * lanes + v,
                                ],
                                acc[v],
                            )
                    total[0] = T.float32(0)
                    for v in T.unroll(lanes):
                        total[0] = total[0] + acc[v]
                    sums[vi // sums_of, vi % sums_of] = total[0]
        for g in T.thread_binding(item_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("scale"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    total[0] = T.float32(0)
                    for i in T.serial(sums_of):
                        total[0] = total[0] + sums[vi // per, i]
                    total[0] = T.float32(1) / T.sqrt(total[0] * T.float32(1.0 / part) + T.float32(eps))
                    for v in T.vectorized(lanes):
                        y[0, vi * lanes // width, vi * lanes % width + v] = (
                            x[0, vi * lanes // width, vi * lanes % width + v] * total[0] * w[vi % per * lanes + v]
                        )

    return rms_norm


@functools.cache
def add_rms_norm(tile: GpuTile, n: int, width: int, eps: float) -> Any:
    """The PrimFunc (x, r, w, s, y, sums[n, partial_sums]): s = x + r, y = rms_norm(s) * w, all of [1, n, width]."""
    size, lanes, sums_of = tile.group, tile.vector(width), partial_sums(width)
    folds, items = n * sums_of, n * width // lanes
    fold_groups, item_groups, per = -(-folds // size), -(-items // size), width // lanes

    @T.prim_func(s_tir=True)
    def add_rms_norm(
        x: T.Buffer((1, n, width), "float32"),
        r: T.Buffer((1, n, width), "float32"),
        w: T.Buffer((width,), "float32"),
        s: T.Buffer((1, n, width), "float32"),
        y: T.Buffer((1, n, width), "float32"),
        sums: T.Buffer((n, sums_of), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(fold_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("squares"):
                    vi = T.axis.spatial(folds, g * size + t)
                    T.where(g * size + t < folds)
                    acc = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                    added = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                    total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    for v in T.vectorized(lanes):
                        acc[v] = T.float32(0)
                    for i in T.serial(T.min(PART, width - vi % sums_of * PART) // lanes):
                        for v in T.vectorized(lanes):
                            added[v] = (
                                x[0, vi // sums_of, vi % sums_of * PART + i * lanes + v]
                                + r[0, vi // sums_of, vi % sums_of * PART + i * lanes + v]
                            )
                        for v in T.vectorized(lanes):
                            s[0, vi // sums_of, vi % sums_of * PART + i * lanes + v] = added[v]
                        for v in T.vectorized(lanes):
                            acc[v] = T.fma(added[v], added[v], acc[v])
                    total[0] = T.float32(0)
                    for v in T.unroll(lanes):
                        total[0] = total[0] + acc[v]
                    sums[vi // sums_of, vi % sums_of] = total[0]
        for g in T.thread_binding(item_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("scale"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    total[0] = T.float32(0)
                    for i in T.serial(sums_of):
                        total[0] = total[0] + sums[vi // per, i]
                    total[0] = T.float32(1) / T.sqrt(total[0] * T.float32(1.0 / width) + T.float32(eps))
                    for v in T.vectorized(lanes):
                        y[0, vi // per, vi % per * lanes + v] = (
                            s[0, vi // per, vi % per * lanes + v] * total[0] * w[vi % per * lanes + v]
                        )

    return add_rms_norm


@functools.cache
def layer_norm(tile: GpuTile, n: int, width: int, eps: float, groups: int = 1, own: bool = False) -> Any:
    """The PrimFunc (x[1, n, width], w, b, y): each of `groups` equal parts of a row is normalised alone.

    y = (x - mean) / sqrt(variance + eps) * w + b. All parts share one w and b [width / groups], or with `own` each has
    its own: w and b are [width]. Four work-items a part: each adds up all of it and normalises a quarter.
    """
    part = width // groups
    lanes, step = tile.vector(part), part if own else 0
    quarter, weights = -(-part // 4), width if own else part

    @T.prim_func(s_tir=True)
    def layer_norm(
        x: T.Buffer((1, n, width), "float32"),
        w: T.Buffer((weights,), "float32"),
        b: T.Buffer((weights,), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for m in T.thread_binding(n * groups, thread="blockIdx.x"):
            for t in T.thread_binding(4, thread="threadIdx.x"):
                with T.sblock("quarter"):
                    vm, vt = T.axis.remap("SS", [m, t])
                    acc = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                    mean = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    for v in T.vectorized(lanes):
                        acc[v] = T.float32(0)
                    for i in T.serial(part // lanes):
                        for v in T.vectorized(lanes):
                            acc[v] = acc[v] + x[0, vm // groups, vm % groups * part + i * lanes + v]
                    mean[0] = T.float32(0)
                    for v in T.unroll(lanes):
                        mean[0] = mean[0] + acc[v]
                    mean[0] = mean[0] * T.float32(1.0 / part)
                    for v in T.vectorized(lanes):
                        acc[v] = T.float32(0)
                    for i in T.serial(part // lanes):
                        for v in T.vectorized(lanes):
                            acc[v] = T.fma(
                                x[0, vm // groups, vm % groups * part + i * lanes + v] - mean[0],
                                x[0, vm // groups, vm % groups * part + i * lanes + v] - mean[0],
                                acc[v],
                            )
                    total[0] = T.float32(0)
                    for v in T.unroll(lanes):
                        total[0] = total[0] + acc[v]
                    total[0] = T.float32(1) / T.sqrt(total[0] * T.float32(1.0 / part) + T.float32(eps))
                    for i in T.serial(T.min(quarter, part - vt * quarter)):
                        y[0, vm // groups, vm % groups * part + vt * quarter + i] = T.fma(
                            (x[0, vm // groups, vm % groups * part + vt * quarter + i] - mean[0]) * total[0],
                            w[vm % groups * step + vt * quarter + i],
                            b[vm % groups * step + vt * quarter + i],
                        )

    return layer_norm
