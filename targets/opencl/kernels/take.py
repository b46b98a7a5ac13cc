"""Copies of a part: a prompt chunk's last row (the head needs no other), columns of a projection, rows of a table."""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.opencl.kernels import load_half, storage
from targets.opencl.tile import GpuTile


@functools.cache
def take_row(tile: GpuTile, n: int, width: int) -> Any:
    """The PrimFunc (x[1, n, width], row, y[1, 1, width]): y = x[row]."""
    size = tile.group
    groups = -(-width // size)

    @T.prim_func(s_tir=True)
    def take_row(x: T.Buffer((1, n, width), "float32"), row: T.int64, y: T.Buffer((1, 1, width), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("value"):
                    vi = T.axis.spatial(width, g * size + t)
                    T.where(g * size + t < width)
                    y[0, 0, vi] = x[0, T.Cast("int32", row), vi]

    return take_row


@functools.cache
def take_columns(tile: GpuTile, n: int, width: int, start: int, part: int) -> Any:
    """The PrimFunc (x[1, n, width], y[1, n, part]): y = x[:, :, start : start + part]."""
    size = tile.group
    groups = -(-(n * part) // size)

    @T.prim_func(s_tir=True)
    def take_columns(x: T.Buffer((1, n, width), "float32"), y: T.Buffer((1, n, part), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("value"):
                    vi = T.axis.spatial(n * part, g * size + t)
                    T.where(g * size + t < n * part)
                    y[0, vi // part, vi % part] = x[0, vi // part, start + vi % part]

    return take_columns


@functools.cache
def learned_positions(tile: GpuTile, n: int, rows: int, width: int, dtype: str) -> Any:
    """The PrimFunc (w[rows, width], ids[1, n], pos, y[1, n, width]): y = w[pos : pos + n] in float32; ids is unread."""
    return _learned_positions(tile, n, rows, width, dtype, apart=False)


@functools.cache
def learned_positions_rows(tile: GpuTile, n: int, rows: int, width: int, dtype: str) -> Any:
    """The same of rows that each have a position of their own: pos is int64 [n]."""
    return _learned_positions(tile, n, rows, width, dtype, apart=True)


def _learned_positions(tile: GpuTile, n: int, rows: int, width: int, dtype: str, apart: bool) -> Any:
    size, half, stored = tile.group, dtype == "float16", storage(dtype)
    groups = -(-(n * width) // size)

    pos_type = T.Buffer((n,), "int64") if apart else T.int64

    def position(pos: Any, row: Any) -> Any:
        return T.Cast("int32", pos[row]) if apart else T.Cast("int32", pos) + row

    @T.prim_func(s_tir=True)
    def learned_positions(
        w: T.Buffer((rows, width), stored),
        ids: T.Buffer((1, n), "int64"),
        pos: pos_type,
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("value"):
                    vi = T.axis.spatial(n * width, g * size + t)
                    T.where(g * size + t < n * width)
                    if half:
                        y[0, vi // width, vi % width] = load_half(w, position(pos, vi // width), vi % width)
                    else:
                        y[0, vi // width, vi % width] = w[position(pos, vi // width), vi % width]

    return learned_positions


@functools.cache
def join_columns(tile: GpuTile, n: int, width: int, other: int) -> Any:
    """The PrimFunc (a[1, n, width], b[1, n, other], y[1, n, width + other]): y = a and b beside one another."""
    size, whole = tile.group, width + other
    groups = -(-(n * whole) // size)

    @T.prim_func(s_tir=True)
    def join_columns(
        a: T.Buffer((1, n, width), "float32"),
        b: T.Buffer((1, n, other), "float32"),
        y: T.Buffer((1, n, whole), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("value"):
                    vi = T.axis.spatial(n * whole, g * size + t)
                    T.where(g * size + t < n * whole)
                    y[0, vi // whole, vi % whole] = T.if_then_else(
                        vi % whole < width,
                        a[0, vi // whole, vi % whole],
                        b[0, vi // whole, vi % whole - width],
                    )

    return join_columns
