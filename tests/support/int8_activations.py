"""The arithmetic of quantise_rows and linear_int (targets/cpu/kernels/linear_int.py) in numpy, and cases of it.

Sums of 32 products are exact integers; what follows is float32, each operation rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from passes.lower.pack import pack_quantised, to_panels
from passes.packed_codes import pack_codes
from targets.cpu.dot import DOTS, STEP, dot_of
from targets.cpu.tile import CpuTile

Array = npt.NDArray[Any]
F32 = np.float32
ROWS = (1, 2, 3, 4, 5, 8, 12)  # what is computed at once


def fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """a * b + c of float32 arrays, rounded once.

    The product is exact in float64. The sum is rounded to odd there, so that rounding it again to float32 gives what
    one rounding gives (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).
    """
    product, added = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + added
    part = total - product
    error = (product - (total - part)) + (added - part)
    whole = total.view(np.int64)
    away = np.where((error > 0) == (total > 0), whole + 1, whole - 1)
    odd = np.where((error != 0) & (whole & 1 == 0), away, whole)
    result: Array = odd.view(np.float64).astype(F32)
    return result


def quantise(x: Array) -> tuple[Array, Array, Array]:
    """Rows [n, k] of float32 -> codes int32 [n, k], scales float32 [n, k / 32], sums of the codes int32 [n, k / 32]."""
    steps = x.reshape(len(x), -1, STEP)
    top = np.abs(steps).max(-1, keepdims=True)
    factor = np.where(top > 0, F32(127) / np.where(top > 0, top, F32(1)), F32(0))
    codes = np.rint(np.clip(steps * factor, F32(-127), F32(127))).astype(np.int32)
    return codes.reshape(x.shape), top[..., 0] * F32(1 / 127), codes.sum(-1, dtype=np.int32)


def words(codes: Array) -> Array:
    """Codes [n, k] as uint32 [n, k / 4], the first of four in the lowest byte."""
    packed: Array = np.ascontiguousarray(codes.astype(np.int8)).view("<u4")
    return packed


def by_step(values: Array, length: int) -> Array:
    """Rows [n, k], filled step by step, `length` values of each row."""
    return values.reshape(len(values), -1, length).transpose(1, 0, 2).reshape(values.shape)


def stored(x: Array, tile: CpuTile) -> tuple[Array, Array, Array]:
    """What `quantise` makes of rows [n, k], in the order in which the kernels of a tile keep it."""
    codes, scale, total = quantise(x)
    (n, k), dot = codes.shape, DOTS[dot_of(tile.dot, len(codes))]
    if dot.by_step:
        return by_step(codes, STEP), by_step(scale, 1), by_step(total, 1)
    if dot.pairs:
        codes = codes.reshape(n // 2, 2, k // 8, 8).transpose(0, 2, 1, 3).reshape(n, k)
    return codes, scale, total


def multiply(x: Array, values: Array, scale: Array, zero: Array | None, bits: int, block: int) -> Array:
    """Rows float32 [n, k] times codes uint8 [columns, k] with scale and zero [columns, k / block] -> [n, columns]."""
    codes, x_scale, total = quantise(x)
    middle = 1 << (bits - 1)
    y = np.zeros((len(x), len(values)), F32)
    for s in range(x.shape[1] // STEP):
        part = slice(s * STEP, (s + 1) * STEP)
        sums = codes[:, part] @ (values[:, part].astype(np.int32) - middle).T
        factor = scale[:, s * STEP // block].astype(F32)
        y = fused_multiply_add(sums.astype(F32) * factor, np.broadcast_to(x_scale[:, s, None], y.shape), y)
        if zero is not None:
            shift = factor * (F32(middle) - zero[:, s * STEP // block].astype(F32))
            given = total[:, s].astype(F32) * x_scale[:, s]
            y = fused_multiply_add(np.broadcast_to(shift, y.shape), np.broadcast_to(given[:, None], y.shape), y)
    return y


@dataclass(frozen=True)
class Case:
    """Random weights of one format.

    Attributes:
        bits: of a weight.
        k, columns: sizes of the matrix.
        block: values of k with one scale.
        scale_dtype: how scales are stored.
        zero_dtype: how zero points are stored; "": there are none.
    """

    bits: int
    k: int = 160
    columns: int = 40
    block: int = 64
    scale_dtype: str = "float32"
    zero_dtype: str = ""

    @property
    def name(self) -> str:
        """Usable in a function's name."""
        return (
            f"int{self.bits}_{self.k}_{self.columns}_{self.block}_{self.scale_dtype}_{self.zero_dtype or 'symmetric'}"
        )

    @property
    def format(self) -> tuple[Any, ...]:
        """What follows the tile and n in the arguments of linear_int."""
        zeros = self.zero_dtype != ""
        sizes = (self.k, self.columns, self.bits, self.block, self.scale_dtype, zeros)
        return (*sizes, self.zero_dtype) if zeros else sizes

    def weights(self) -> tuple[Array, Array, Array | None]:
        """Codes uint8 [columns, k], all values among them; scales; zero points or None."""
        rng = np.random.default_rng(self.bits)
        values = rng.integers(0, 1 << self.bits, (self.columns, self.k)).astype(np.uint8)
        values[0], values[1] = 0, (1 << self.bits) - 1  # the largest sums of products
        shape = self.columns, -(-self.k // self.block)
        scale = rng.uniform(0.01, 0.1, shape).astype(self.scale_dtype)
        if not self.zero_dtype:
            return values, scale, None
        zero = rng.uniform(0, 1 << self.bits, shape).astype(self.zero_dtype)
        return values, scale, zero

    def rows(self, n: int = max(ROWS)) -> Array:
        """Activations [n, k], float32; the first n of the same rows for each n."""
        x = np.random.default_rng(9).standard_normal((max(ROWS), self.k)).astype(F32)
        x[0, :STEP] = np.where(np.arange(STEP) % 2, 3, -3)  # codes of 127 and -127 only: the largest sums
        x[0, STEP : 2 * STEP] = 3
        x[2, :STEP] = 0
        x[3, 5] = 1e-38
        return x[:n]

    def expected(self, n: int = max(ROWS)) -> Array:
        """What linear_int computes, [n, columns]."""
        return multiply(self.rows(n), *self.weights(), self.bits, self.block)

    def inputs(self, tile: CpuTile, n: int) -> tuple[Array, ...]:
        """The arguments of linear_int in front of its output: codes, scale and total of the rows; q, scale, zero."""
        dot = DOTS[dot_of(tile.dot, n)]
        codes, x_scale, total = stored(self.rows(n), tile)
        given = codes.astype(dot.activations[self.bits])[None], x_scale[None], total[None]
        return *given, *self.packed(tile.panel)

    def gpu_inputs(self, panel: int, n: int) -> tuple[Array, ...]:
        """The same for OpenCL, whose codes are four to a word."""
        codes, x_scale, total = quantise(self.rows(n))
        return words(codes)[None], x_scale[None], total[None], *self.packed(panel)

    def packed(self, panel: int) -> tuple[Array, Array, Array]:
        """q, scale and zero in panels."""
        values, scale, zero = self.weights()
        return (
            pack_quantised(pack_codes(values, self.bits), self.bits, self.k, panel),
            to_panels(scale.T, panel),
            np.zeros((1, 1, 1), np.uint8) if zero is None else to_panels(zero.T, panel),
        )


CASES = [
    Case(bits, scale_dtype=scale, zero_dtype=zero, block=block)
    for bits in (4, 8)
    for scale, zero, block in (
        ("float32", "", 64),  # the last block of k = 160 has 32 values
        ("float16", "uint8", 32),
        ("float16", "float16", 128),
        ("float32", "float32", 32),
    )
]
CASES += [Case(2, scale_dtype="float32"), Case(2, scale_dtype="float16", zero_dtype="uint8", block=32)]
LONG = Case(
    4, k=1120, columns=24, block=32, scale_dtype="float16", zero_dtype="uint8"
)  # more than a cache holds at once
