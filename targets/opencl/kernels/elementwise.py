"""Elementwise kernels: residual and bias addition, gates, activations, scaling. One work-item moves one vector."""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.kernels.elementwise import elementwise, gelu_kind
from targets.kernels.vector_math import GELU_CUBIC, GELU_SLOPE
from targets.opencl.tile import GpuTile


def add(tile: GpuTile, n: int, width: int) -> Any:
    """The PrimFunc (a, b, y): y = a + b, all of [1, n, width]."""
    return _binary(tile, n, width, "add")


def silu_mul(tile: GpuTile, n: int, width: int) -> Any:
    """The PrimFunc (gate, up, y): y = gate * sigmoid(gate) * up, all of [1, n, width]."""
    return _binary(tile, n, width, "silu_mul")


def gelu_mul(
    tile: GpuTile, n: int, width: int, tanh: bool, slope: float = GELU_SLOPE, cubic: float = GELU_CUBIC
) -> Any:
    """The PrimFunc (gate, up, y): y = gelu(gate) * up, all of [1, n, width]; which GELU: see lanes_gelu."""
    return _binary(tile, n, width, gelu_kind("gelu_mul", tanh), slope, cubic)


def gelu(tile: GpuTile, n: int, width: int, tanh: bool, slope: float = GELU_SLOPE, cubic: float = GELU_CUBIC) -> Any:
    """GELU of every value, a PrimFunc (x, y) of [1, n, width]; which one: see lanes_gelu."""
    return _unary(tile, n, width, gelu_kind("gelu", tanh), slope, cubic)


def relu(tile: GpuTile, n: int, width: int) -> Any:
    """The PrimFunc (x, y): y = max(x, 0), both of [1, n, width]."""
    return _unary(tile, n, width, "relu")


def squared_relu(tile: GpuTile, n: int, width: int) -> Any:
    """The PrimFunc (x, y): y = max(x, 0)^2, both of [1, n, width]."""
    return _unary(tile, n, width, "squared_relu")


def xielu(tile: GpuTile, n: int, width: int, positive: float, negative: float, beta: float) -> Any:
    """The PrimFunc (x, y), both of [1, n, width]: beta * x + positive * x^2, below 0 + negative * (e^x - 1 - x)."""
    return _unary(tile, n, width, "xielu", positive, negative, beta)


def clip(tile: GpuTile, n: int, width: int, least: float, most: float) -> Any:
    """The PrimFunc (x, y), both of [1, n, width]: y is the number from `least` to `most` nearest to x."""
    return _unary(tile, n, width, "clip", least, most)


def tanh(tile: GpuTile, n: int, width: int) -> Any:
    """Hyperbolic tangent of every value, a PrimFunc (x, y) of [1, n, width]."""
    return _unary(tile, n, width, "tanh")


def scale(tile: GpuTile, n: int, width: int, factor: float) -> Any:
    """The PrimFunc (x, y): y = factor * x, both of [1, n, width]."""
    return _unary(tile, n, width, "scale", factor)


@functools.cache
def _binary(tile: GpuTile, n: int, width: int, kind: str, *constants: float) -> Any:
    size, lanes = tile.group, tile.vector(width)
    function = elementwise(kind, *constants)
    items = n * width // lanes
    groups = -(-items // size)

    @T.prim_func(s_tir=True)
    def binary(
        a: T.Buffer((1, n, width), "float32"),
        b: T.Buffer((1, n, width), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("vector"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    for v in T.vectorized(lanes):
                        y[0, vi * lanes // width, vi * lanes % width + v] = function(
                            a[0, vi * lanes // width, vi * lanes % width + v],
                            b[0, vi * lanes // width, vi * lanes % width + v],
                        )

    return binary


@functools.cache
def add_bias(tile: GpuTile, n: int, width: int) -> Any:
    """The PrimFunc (a[1, n, width], b[width], y): y = a + b in every row."""
    size, lanes = tile.group, tile.vector(width)
    items = n * width // lanes
    groups = -(-items // size)

    @T.prim_func(s_tir=True)
    def add_bias(
        a: T.Buffer((1, n, width), "float32"),
        b: T.Buffer((width,), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("vector"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    for v in T.vectorized(lanes):
                        y[0, vi * lanes // width, vi * lanes % width + v] = (
                            a[0, vi * lanes // width, vi * lanes % width + v] + b[vi * lanes % width + v]
                        )

    return add_bias


@functools.cache
def scale_columns(tile: GpuTile, n: int, width: int) -> Any:
    """The PrimFunc (a[1, n, width], b[width], y): y = a * b in every row."""
    size, lanes = tile.group, tile.vector(width)
    items = n * width // lanes
    groups = -(-items // size)

    @T.prim_func(s_tir=True)
    def scale_columns(
        a: T.Buffer((1, n, width), "float32"),
        b: T.Buffer((width,), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("vector"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    for v in T.vectorized(lanes):
                        y[0, vi * lanes // width, vi * lanes % width + v] = (
                            a[0, vi * lanes // width, vi * lanes % width + v] * b[vi * lanes % width + v]
                        )

    return scale_columns


@functools.cache
def _unary(tile: GpuTile, n: int, width: int, kind: str, *constants: float) -> Any:
    size, lanes = tile.group, tile.vector(width)
    items = n * width // lanes
    groups = -(-items // size)
    function = elementwise(kind, *constants)

    @T.prim_func(s_tir=True)
    def unary(x: T.Buffer((1, n, width), "float32"), y: T.Buffer((1, n, width), "float32")):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("vector"):
                    vi = T.axis.spatial(items, g * size + t)
                    T.where(g * size + t < items)
                    for v in T.vectorized(lanes):
                        y[0, vi * lanes // width, vi * lanes % width + v] = function(
                            x[0, vi * lanes // width, vi * lanes % width + v]
                        )

    return unary
