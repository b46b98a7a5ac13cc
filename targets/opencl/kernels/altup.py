"""AltUp's steps on rows of streams beside one another (passes/onnx/rewrite/altup_functions.py says what they compute).

One work-item moves one vector of one stream; each value is computed from its own row alone, streams in order.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.opencl.tile import GpuTile


@functools.cache
def altup_predict(tile: GpuTile, n: int, width: int, streams: int) -> Any:
    """The PrimFunc (x[1, n, width], c[1, n, streams^2], y): y_i = x_i + sum over j of c[i * streams + j] x_j."""
    part, size = width // streams, tile.group
    lanes = tile.vector(part)
    of_row, of_stream = width // lanes, part // lanes
    items = n * of_row
    groups = -(-items // size)

    @T.prim_func(s_tir=True)
    def altup_predict(
        x: T.Buffer((1, n, width), "float32"),
        c: T.Buffer((1, n, streams * streams), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("vector"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    acc = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                    for v in T.vectorized(lanes):
                        acc[v] = x[0, vi // of_row, vi % of_row * lanes + v]
                    for j in T.serial(streams):
                        for v in T.vectorized(lanes):
                            acc[v] = T.fma(
                                c[0, vi // of_row, vi % of_row // of_stream * streams + j],
                                x[0, vi // of_row, j * part + vi % of_stream * lanes + v],
                                acc[v],
                            )
                    for v in T.vectorized(lanes):
                        y[0, vi // of_row, vi % of_row * lanes + v] = acc[v]

    return altup_predict


@functools.cache
def altup_correct(tile: GpuTile, n: int, width: int, streams: int, active: int) -> Any:
    """The PrimFunc (x[1, n, width], a[1, n, part], c[1, n, streams], y): y_i = x_i + (1 + c_i)(a - x_active)."""
    part, size = width // streams, tile.group
    lanes = tile.vector(part)
    of_row, of_stream = width // lanes, part // lanes
    items = n * of_row
    groups = -(-items // size)

    @T.prim_func(s_tir=True)
    def altup_correct(
        x: T.Buffer((1, n, width), "float32"),
        a: T.Buffer((1, n, part), "float32"),
        c: T.Buffer((1, n, streams), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("vector"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    for v in T.vectorized(lanes):
                        y[0, vi // of_row, vi % of_row * lanes + v] = T.fma(
                            T.float32(1) + c[0, vi // of_row, vi % of_row // of_stream],
                            a[0, vi // of_row, vi % of_stream * lanes + v]
                            - x[0, vi // of_row, active * part + vi % of_stream * lanes + v],
                            x[0, vi // of_row, vi % of_row * lanes + v],
                        )

    return altup_correct


@functools.cache
def altup_add(tile: GpuTile, n: int, width: int, streams: int, first: int) -> Any:
    """The PrimFunc (x[1, n, width], a[1, n, part], y): y_i = x_i + a of streams from `first` on, x_i of the others."""
    part, size = width // streams, tile.group
    lanes = tile.vector(part)
    of_row, of_stream = width // lanes, part // lanes
    items = n * of_row
    groups = -(-items // size)

    @T.prim_func(s_tir=True)
    def altup_add(
        x: T.Buffer((1, n, width), "float32"),
        a: T.Buffer((1, n, part), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("vector"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    added = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    added[0] = T.if_then_else(vi % of_row // of_stream >= first, T.float32(1), T.float32(0))
                    for v in T.vectorized(lanes):
                        y[0, vi // of_row, vi % of_row * lanes + v] = T.fma(
                            added[0],
                            a[0, vi // of_row, vi % of_stream * lanes + v],
                            x[0, vi // of_row, vi % of_row * lanes + v],
                        )

    return altup_add
