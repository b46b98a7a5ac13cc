"""Copies of a part: one row of a prompt chunk, one part of a packed projection, rows of a position table.

The head needs the last token of a prompt only, hence the one row.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile


@functools.cache
def take_row(tile: CpuTile, n: int, width: int) -> Any:
    """The PrimFunc (x[1, n, width], row, y[1, 1, width]): y = x[row]."""

    @T.prim_func(s_tir=True)
    def take_row(x: T.Buffer((1, n, width), "float32"), row: T.int64, y: T.Buffer((1, 1, width), "float32")):
        T.func_attr({"tirx.noalias": True})
        for i in T.serial(width):
            with T.sblock("value"):
                vi = T.axis.spatial(width, i)
                y[0, 0, vi] = x[0, row, vi]

    return take_row


@functools.cache
def take_columns(tile: CpuTile, n: int, width: int, start: int, part: int) -> Any:
    """The PrimFunc (x[1, n, width], y[1, n, part]): y = x[:, :, start : start + part]."""

    @T.prim_func(s_tir=True)
    def take_columns(x: T.Buffer((1, n, width), "float32"), y: T.Buffer((1, n, part), "float32")):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, part):
            with T.sblock("value"):
                vm, vi = T.axis.remap("SS", [m, i])
                y[0, vm, vi] = x[0, vm, start + vi]

    return take_columns


@functools.cache
def learned_positions(tile: CpuTile, n: int, rows: int, width: int, dtype: str) -> Any:
    """The PrimFunc (w[rows, width], ids[1, n], pos, y[1, n, width]): y = w[pos : pos + n] in float32; ids is unread."""

    @T.prim_func(s_tir=True)
    def learned_positions(
        w: T.Buffer((rows, width), dtype),
        ids: T.Buffer((1, n), "int64"),
        pos: T.int64,
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, width):
            with T.sblock("value"):
                vm, vi = T.axis.remap("SS", [m, i])
                y[0, vm, vi] = T.Cast("float32", w[pos + vm, vi])

    return learned_positions


@functools.cache
def learned_positions_rows(tile: CpuTile, n: int, rows: int, width: int, dtype: str) -> Any:
    """The same of rows that each have a position of their own: pos is int64 [n]."""

    @T.prim_func(s_tir=True)
    def learned_positions_rows(
        w: T.Buffer((rows, width), dtype),
        ids: T.Buffer((1, n), "int64"),
        pos: T.Buffer((n,), "int64"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, width):
            with T.sblock("value"):
                vm, vi = T.axis.remap("SS", [m, i])
                y[0, vm, vi] = T.Cast("float32", w[pos[vm], vi])

    return learned_positions_rows


@functools.cache
def join_columns(tile: CpuTile, n: int, width: int, other: int) -> Any:
    """The PrimFunc (a[1, n, width], b[1, n, other], y[1, n, width + other]): y = a and b beside one another."""

    @T.prim_func(s_tir=True)
    def join_columns(
        a: T.Buffer((1, n, width), "float32"),
        b: T.Buffer((1, n, other), "float32"),
        y: T.Buffer((1, n, width + other), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m in T.serial(n):
            for i in T.serial(width):
                with T.sblock("first"):
                    vm, vi = T.axis.remap("SS", [m, i])
                    y[0, vm, vi] = a[0, vm, vi]
            for i in T.serial(other):
                with T.sblock("second"):
                    vm, vi = T.axis.remap("SS", [m, i])
                    y[0, vm, width + vi] = b[0, vm, vi]

    return join_columns
