"""AltUp's steps on rows of streams beside one another (passes/onnx/rewrite/altup_functions.py says what they compute).

Each value of a row is computed from its own row alone, streams in order, whatever the number of rows.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile


@functools.cache
def altup_predict(tile: CpuTile, n: int, width: int, streams: int) -> Any:
    """The PrimFunc (x[1, n, width], c[1, n, streams^2], y): y_i = x_i + sum over j of c[i * streams + j] x_j."""
    part = width // streams
    lanes = tile.vector(part)

    @T.prim_func(s_tir=True)
    def altup_predict(
        x: T.Buffer((1, n, width), "float32"),
        c: T.Buffer((1, n, streams * streams), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i, s in T.grid(n, part // lanes, streams):
            with T.sblock("vector"):
                vm, vi, vs = T.axis.remap("SSS", [m, i, s])
                acc = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                for v in T.vectorized(lanes):
                    acc[v] = x[0, vm, vs * part + vi * lanes + v]
                for j in T.serial(streams):
                    for v in T.vectorized(lanes):
                        acc[v] = T.fma(
                            c[0, vm, vs * streams + j],
                            x[0, vm, j * part + vi * lanes + v],
                            acc[v],
                        )
                for v in T.vectorized(lanes):
                    y[0, vm, vs * part + vi * lanes + v] = acc[v]

    return altup_predict


@functools.cache
def altup_correct(tile: CpuTile, n: int, width: int, streams: int, active: int) -> Any:
    """The PrimFunc (x[1, n, width], a[1, n, width / streams], c[1, n, streams], y).

    y_i = x_i + (1 + c_i)(a - x_active).
    """
    part = width // streams
    lanes = tile.vector(part)

    @T.prim_func(s_tir=True)
    def altup_correct(
        x: T.Buffer((1, n, width), "float32"),
        a: T.Buffer((1, n, part), "float32"),
        c: T.Buffer((1, n, streams), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i, s in T.grid(n, part // lanes, streams):
            with T.sblock("vector"):
                vm, vi, vs = T.axis.remap("SSS", [m, i, s])
                for v in T.vectorized(lanes):
                    y[0, vm, vs * part + vi * lanes + v] = T.fma(
                        T.float32(1) + c[0, vm, vs],
                        a[0, vm, vi * lanes + v] - x[0, vm, active * part + vi * lanes + v],
                        x[0, vm, vs * part + vi * lanes + v],
                    )

    return altup_correct


@functools.cache
def altup_add(tile: CpuTile, n: int, width: int, streams: int, first: int) -> Any:
    """The PrimFunc (x[1, n, width], a[1, n, width / streams], y): y_i = x_i + a from stream `first` on, else x_i."""
    part = width // streams
    lanes = tile.vector(part)

    @T.prim_func(s_tir=True)
    def altup_add(
        x: T.Buffer((1, n, width), "float32"),
        a: T.Buffer((1, n, part), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i, s in T.grid(n, part // lanes, streams):
            with T.sblock("vector"):
                vm, vi, vs = T.axis.remap("SSS", [m, i, s])
                for v in T.vectorized(lanes):
                    y[0, vm, vs * part + vi * lanes + v] = x[0, vm, vs * part + vi * lanes + v] + T.if_then_else(
                        vs >= first, a[0, vm, vi * lanes + v], T.float32(0)
                    )

    return altup_add
