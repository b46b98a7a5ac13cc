"""RMS normalisation, alone and fused with the residual addition before it, and layer normalisation.

The sum of squares runs over a fixed number of lanes and folds them in a fixed tree, whatever the number of rows.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile


@functools.cache
def rms_norm(tile: CpuTile, n: int, width: int, groups: int, eps: float) -> Any:
    """The PrimFunc (x[1, n, width], w[width / groups], y): each of `groups` equal parts of a row is normalised alone.

    y = x / sqrt(mean(x^2) + eps) * w. Several groups serve the q and k norms of Qwen3, one per head.
    """
    part = width // groups
    lanes = tile.vector(part)

    @T.prim_func(s_tir=True)
    def rms_norm(
        x: T.Buffer((1, n, width), "float32"),
        w: T.Buffer((part,), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, g in T.grid(n, groups):
            with T.sblock("part"):
                vm, vg = T.axis.remap("SS", [m, g])
                acc = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                for v in T.vectorized(lanes):
                    acc[v] = T.float32(0)
                for i in T.serial(part // lanes):
                    for v in T.vectorized(lanes):
                        acc[v] = T.fma(x[0, vm, vg * part + i * lanes + v], x[0, vm, vg * part + i * lanes + v], acc[v])
                total[0] = T.float32(0)
                for v in T.unroll(lanes):
                    total[0] = total[0] + acc[v]
                total[0] = T.float32(1) / T.sqrt(total[0] * T.float32(1.0 / part) + T.float32(eps))
                for i in T.serial(part // lanes):
                    for v in T.vectorized(lanes):
                        y[0, vm, vg * part + i * lanes + v] = (
                            x[0, vm, vg * part + i * lanes + v] * total[0] * w[i * lanes + v]
                        )

    return rms_norm


@functools.cache
def add_rms_norm(tile: CpuTile, n: int, width: int, eps: float) -> Any:
    """The PrimFunc (x, r, w, s, y): s = x + r, y = rms_norm(s) * w, all of [1, n, width]."""
    lanes = tile.vector(width)

    @T.prim_func(s_tir=True)
    def add_rms_norm(
        x: T.Buffer((1, n, width), "float32"),
        r: T.Buffer((1, n, width), "float32"),
        w: T.Buffer((width,), "float32"),
        s: T.Buffer((1, n, width), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m in T.serial(n):
            with T.sblock("row"):
                vm = T.axis.spatial(n, m)
                acc = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                for v in T.vectorized(lanes):
                    acc[v] = T.float32(0)
                for i in T.serial(width // lanes):
                    for v in T.vectorized(lanes):
                        s[0, vm, i * lanes + v] = x[0, vm, i * lanes + v] + r[0, vm, i * lanes + v]
                    for v in T.vectorized(lanes):
                        acc[v] = T.fma(s[0, vm, i * lanes + v], s[0, vm, i * lanes + v], acc[v])
                total[0] = T.float32(0)
                for v in T.unroll(lanes):
                    total[0] = total[0] + acc[v]
                total[0] = T.float32(1) / T.sqrt(total[0] * T.float32(1.0 / width) + T.float32(eps))
                for i in T.serial(width // lanes):
                    for v in T.vectorized(lanes):
                        y[0, vm, i * lanes + v] = s[0, vm, i * lanes + v] * total[0] * w[i * lanes + v]

    return add_rms_norm


@functools.cache
def layer_norm(tile: CpuTile, n: int, width: int, eps: float, groups: int = 1, own: bool = False) -> Any:
    """The PrimFunc (x[1, n, width], w, b, y): each of `groups` equal parts of a row is normalised alone.

    y = (x - mean) / sqrt(variance + eps) * w + b. All parts share one w and b [width / groups], or with `own` each has
    its own: w and b are [width].
    """
    part = width // groups
    lanes, step = tile.vector(part), part if own else 0
    weights = width if own else part

    @T.prim_func(s_tir=True)
    def layer_norm(
        x: T.Buffer((1, n, width), "float32"),
        w: T.Buffer((weights,), "float32"),
        b: T.Buffer((weights,), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, g in T.grid(n, groups):
            with T.sblock("part"):
                vm, vg = T.axis.remap("SS", [m, g])
                acc = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                mean = T.sblock_alloc_buffer((1,), "float32", scope="local")
                total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                for v in T.vectorized(lanes):
                    acc[v] = T.float32(0)
                for i in T.serial(part // lanes):
                    for v in T.vectorized(lanes):
                        acc[v] = acc[v] + x[0, vm, vg * part + i * lanes + v]
                mean[0] = T.float32(0)
                for v in T.unroll(lanes):
                    mean[0] = mean[0] + acc[v]
                mean[0] = mean[0] * T.float32(1.0 / part)
                for v in T.vectorized(lanes):
                    acc[v] = T.float32(0)
                for i in T.serial(part // lanes):
                    for v in T.vectorized(lanes):
                        acc[v] = T.fma(
                            x[0, vm, vg * part + i * lanes + v] - mean[0],
                            x[0, vm, vg * part + i * lanes + v] - mean[0],
                            acc[v],
                        )
                total[0] = T.float32(0)
                for v in T.unroll(lanes):
                    total[0] = total[0] + acc[v]
                total[0] = T.float32(1) / T.sqrt(total[0] * T.float32(1.0 / part) + T.float32(eps))
                for i in T.serial(part // lanes):
                    for v in T.vectorized(lanes):
                        y[0, vm, vg * part + i * lanes + v] = T.fma(
                            (x[0, vm, vg * part + i * lanes + v] - mean[0]) * total[0],
                            w[vg * step + i * lanes + v],
                            b[vg * step + i * lanes + v],
                        )

    return layer_norm
