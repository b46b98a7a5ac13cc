"""Elementwise kernels: residual and bias addition, the gates of gated FFNs, activations, scaling."""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile
from targets.kernels.elementwise import elementwise, gelu_kind
from targets.kernels.vector_math import GELU_CUBIC, GELU_SLOPE


def add(tile: CpuTile, n: int, width: int) -> Any:
    """The PrimFunc (a, b, y): y = a + b, all of [1, n, width]."""
    return _binary(tile, n, width, "add")


@functools.cache
def add_bias(tile: CpuTile, n: int, width: int) -> Any:
    """The PrimFunc (a[1, n, width], b[width], y): y = a + b in every row."""
    lanes = tile.vector(width)

    @T.prim_func(s_tir=True)
    def add_bias(
        a: T.Buffer((1, n, width), "float32"),
        b: T.Buffer((width,), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, width // lanes):
            with T.sblock("vector"):
                vm, vi = T.axis.remap("SS", [m, i])
                for v in T.vectorized(lanes):
                    y[0, vm, vi * lanes + v] = a[0, vm, vi * lanes + v] + b[vi * lanes + v]

    return add_bias


@functools.cache
def scale_columns(tile: CpuTile, n: int, width: int) -> Any:
    """The PrimFunc (a[1, n, width], b[width], y): y = a * b in every row."""
    lanes = tile.vector(width)

    @T.prim_func(s_tir=True)
    def scale_columns(
        a: T.Buffer((1, n, width), "float32"),
        b: T.Buffer((width,), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, width // lanes):
            with T.sblock("vector"):
                vm, vi = T.axis.remap("SS", [m, i])
                for v in T.vectorized(lanes):
                    y[0, vm, vi * lanes + v] = a[0, vm, vi * lanes + v] * b[vi * lanes + v]

    return scale_columns


def silu_mul(tile: CpuTile, n: int, width: int) -> Any:
    """The PrimFunc (gate, up, y): y = gate * sigmoid(gate) * up, all of [1, n, width]."""
    return _binary(tile, n, width, "silu_mul")


def gelu_mul(
    tile: CpuTile, n: int, width: int, tanh: bool, slope: float = GELU_SLOPE, cubic: float = GELU_CUBIC
) -> Any:
    """The PrimFunc (gate, up, y): y = gelu(gate) * up, all of [1, n, width]; which GELU: see lanes_gelu."""
    return _binary(tile, n, width, gelu_kind("gelu_mul", tanh), slope, cubic)


def gelu(tile: CpuTile, n: int, width: int, tanh: bool, slope: float = GELU_SLOPE, cubic: float = GELU_CUBIC) -> Any:
    """PrimFunc of x and y, both [1, n, width]: y is the GELU of x; which one: see lanes_gelu."""
    return _unary(tile, n, width, gelu_kind("gelu", tanh), slope, cubic)


def relu(tile: CpuTile, n: int, width: int) -> Any:
    """The PrimFunc (x, y): y = max(x, 0), both of [1, n, width]."""
    return _unary(tile, n, width, "relu")


def squared_relu(tile: CpuTile, n: int, width: int) -> Any:
    """The PrimFunc (x, y): y = max(x, 0)^2, both of [1, n, width]."""
    return _unary(tile, n, width, "squared_relu")


def xielu(tile: CpuTile, n: int, width: int, positive: float, negative: float, beta: float) -> Any:
    """The PrimFunc (x, y), both of [1, n, width]: beta * x + positive * x^2, below 0 + negative * (e^x - 1 - x)."""
    return _unary(tile, n, width, "xielu", positive, negative, beta)


def clip(tile: CpuTile, n: int, width: int, least: float, most: float) -> Any:
    """The PrimFunc (x, y), both of [1, n, width]: y is the number from `least` to `most` nearest to x."""
    return _unary(tile, n, width, "clip", least, most)


def tanh(tile: CpuTile, n: int, width: int) -> Any:
    """PrimFunc of x and y, both [1, n, width]: y is the hyperbolic tangent of x."""
    return _unary(tile, n, width, "tanh")


def scale(tile: CpuTile, n: int, width: int, factor: float) -> Any:
    """The PrimFunc (x, y): y = factor * x, both of [1, n, width]."""
    return _unary(tile, n, width, "scale", factor)


@functools.cache
def _binary(tile: CpuTile, n: int, width: int, kind: str, *constants: float) -> Any:
    lanes, function = tile.vector(width), elementwise(kind, *constants)

    @T.prim_func(s_tir=True)
    def binary(
        a: T.Buffer((1, n, width), "float32"),
        b: T.Buffer((1, n, width), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, width // lanes):
            with T.sblock("vector"):
                vm, vi = T.axis.remap("SS", [m, i])
                for v in T.vectorized(lanes):
                    y[0, vm, vi * lanes + v] = function(a[0, vm, vi * lanes + v], b[0, vm, vi * lanes + v])

    return binary


@functools.cache
def _unary(tile: CpuTile, n: int, width: int, kind: str, *constants: float) -> Any:
    lanes, function = tile.vector(width), elementwise(kind, *constants)

    @T.prim_func(s_tir=True)
    def unary(x: T.Buffer((1, n, width), "float32"), y: T.Buffer((1, n, width), "float32")):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, width // lanes):
            with T.sblock("vector"):
                vm, vi = T.axis.remap("SS", [m, i])
                for v in T.vectorized(lanes):
                    y[0, vm, vi * lanes + v] = function(x[0, vm, vi * lanes + v])

    return unary
