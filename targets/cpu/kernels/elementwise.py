"""Elementwise kernels: residual and bias addition, the gates of gated FFNs, activations, scaling."""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cpu.tile import CpuTile
from targets.kernels.vector_math import lanes_exp, lanes_gelu, lanes_tanh


@functools.cache
def add(tile: CpuTile, n: int, width: int) -> Any:
    """The PrimFunc (a, b, y): y = a + b, all of [1, n, width]."""
    lanes = tile.lanes

    @T.prim_func(s_tir=True)
    def add(
        a: T.Buffer((1, n, width), "float32"),
        b: T.Buffer((1, n, width), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, width // lanes):
            with T.sblock("vector"):
                vm, vi = T.axis.remap("SS", [m, i])
                for v in T.vectorized(lanes):
                    y[0, vm, vi * lanes + v] = a[0, vm, vi * lanes + v] + b[0, vm, vi * lanes + v]

    return add


@functools.cache
def add_bias(tile: CpuTile, n: int, width: int) -> Any:
    """The PrimFunc (a[1, n, width], b[width], y): y = a + b in every row."""
    lanes = tile.lanes

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
def silu_mul(tile: CpuTile, n: int, width: int) -> Any:
    """The PrimFunc (gate, up, y): y = gate * sigmoid(gate) * up, all of [1, n, width]."""
    lanes = tile.lanes

    @T.prim_func(s_tir=True)
    def silu_mul(
        gate: T.Buffer((1, n, width), "float32"),
        up: T.Buffer((1, n, width), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, width // lanes):
            with T.sblock("vector"):
                vm, vi = T.axis.remap("SS", [m, i])
                for v in T.vectorized(lanes):
                    y[0, vm, vi * lanes + v] = (
                        gate[0, vm, vi * lanes + v]
                        / (T.float32(1) + lanes_exp(T.float32(0) - gate[0, vm, vi * lanes + v]))
                        * up[0, vm, vi * lanes + v]
                    )

    return silu_mul


@functools.cache
def gelu_mul(tile: CpuTile, n: int, width: int, tanh: bool, *constants: float) -> Any:
    """The PrimFunc (gate, up, y): y = gelu(gate) * up, all of [1, n, width]; `tanh`, `constants`: see lanes_gelu."""
    lanes = tile.lanes
    function: Any = lambda x: lanes_gelu(x, tanh, *constants)  # noqa: E731 (a kernel calls it by name)

    @T.prim_func(s_tir=True)
    def gelu_mul(
        gate: T.Buffer((1, n, width), "float32"),
        up: T.Buffer((1, n, width), "float32"),
        y: T.Buffer((1, n, width), "float32"),
    ):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, width // lanes):
            with T.sblock("vector"):
                vm, vi = T.axis.remap("SS", [m, i])
                for v in T.vectorized(lanes):
                    y[0, vm, vi * lanes + v] = function(gate[0, vm, vi * lanes + v]) * up[0, vm, vi * lanes + v]

    return gelu_mul


def gelu(tile: CpuTile, n: int, width: int, tanh: bool, *constants: float) -> Any:
    """PrimFunc of x and y, both [1, n, width]: y is the GELU of x; `tanh`, `constants`: which one (lanes_gelu)."""
    return _unary(tile, n, width, "gelu tanh" if tanh else "gelu erf", *constants)


def tanh(tile: CpuTile, n: int, width: int) -> Any:
    """PrimFunc of x and y, both [1, n, width]: y is the hyperbolic tangent of x."""
    return _unary(tile, n, width, "tanh")


def scale(tile: CpuTile, n: int, width: int, factor: float) -> Any:
    """The PrimFunc (x, y): y = factor * x, both of [1, n, width]."""
    return _unary(tile, n, width, "scale", factor)


@functools.cache
def _unary(tile: CpuTile, n: int, width: int, kind: str, *constants: float) -> Any:
    lanes = tile.lanes
    function: Any = {
        "gelu tanh": lambda x: lanes_gelu(x, True, *constants),
        "gelu erf": lambda x: lanes_gelu(x, tanh=False),
        "tanh": lanes_tanh,
        "scale": lambda x: T.float32(constants[0]) * x,
    }[kind]

    @T.prim_func(s_tir=True)
    def unary(x: T.Buffer((1, n, width), "float32"), y: T.Buffer((1, n, width), "float32")):
        T.func_attr({"tirx.noalias": True})
        for m, i in T.grid(n, width // lanes):
            with T.sblock("vector"):
                vm, vi = T.axis.remap("SS", [m, i])
                for v in T.vectorized(lanes):
                    y[0, vm, vi * lanes + v] = function(x[0, vm, vi * lanes + v])

    return unary
