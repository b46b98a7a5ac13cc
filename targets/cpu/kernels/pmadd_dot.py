"""Exact dot products of 32 activations with quantised weights on x86-64 with AVX2, for a tile of rows and columns.

  2, 4 bit  vpmaddubsw of unsigned codes; all 16 products of a column and byte pair (at most 15 * 127) fit into 16 bits
  8 bit     vpmaddwd of codes and activations widened to 16 bits, half a vector of columns at a time

A word's operands are unpacked once and multiplied with all rows before the next word's, so that they stay in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from targets.cpu.kernels.integer_dot import Activations, Weights

_LANES = 8  # columns of a vector


def pmadd(vectors: list[Weights], given: Activations) -> list[list[Any]]:
    """The sums of each vector and row."""
    words = vectors[0].bits
    of_vector = _eight if words == 8 else _unsigned

    def ask_of(j: int) -> Callable[[int], None]:
        return lambda i: given.ask(j * words + i, len(vectors) * words)

    return [of_vector(weights, given, ask_of(j)) for j, weights in enumerate(vectors)]


def _unsigned(weights: Weights, given: Activations, ask: Callable[[int], None]) -> list[Any]:
    totals: list[Any] = [None] * len(given.rows)
    vectors = 8 // weights.bits  # of a word
    for i in range(weights.bits):
        ask(i)
        for part, codes in enumerate(weights.codes(i, _LANES)):
            unsigned = T.bind(T.reinterpret(codes, dtype="uint8x32"))
            for m, row in enumerate(given.rows):
                four = T.reinterpret(given.part(row, 4 * (vectors * i + part), 4), dtype="int32")
                x = T.reinterpret(T.broadcast(four, _LANES), dtype="int8x32")
                totals[m] = _plus(totals[m], _call("pmadd.ub.sw", unsigned, x, dtype="int16x16"))
    ones = T.broadcast(T.int16(1), 16)
    return [
        _call("pmadd.wd", total, ones, dtype="int32x8") + T.broadcast(start, _LANES)
        for total, start in zip(totals, given.starts, strict=True)
    ]


def _eight(weights: Weights, given: Activations, ask: Callable[[int], None]) -> list[Any]:
    halves: list[list[Any]] = [[None] * len(given.rows) for _ in range(2)]
    for i in range(8):
        ask(i)
        operands = [T.bind(T.cast(weights.codes(i, 4, first)[0], "int16x16")) for first in (0, 4)]
        for m, row in enumerate(given.rows):
            four = T.reinterpret(given.part(row, 4 * i, 4), dtype="int64")
            x = T.bind(T.reinterpret(T.broadcast(four, 4), dtype="int16x16"))
            for totals, operand in zip(halves, operands, strict=True):
                totals[m] = _plus(totals[m], _call("pmadd.wd", operand, x, dtype="int32x8"))
    return [
        T.Shuffle([low, high], list(range(0, 16, 2)))
        + T.Shuffle([low, high], list(range(1, 16, 2)))
        + T.broadcast(start, _LANES)
        for low, high, start in zip(*halves, given.starts, strict=True)
    ]


def _call(name: str, *args: Any, dtype: str) -> Any:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(f"llvm.x86.avx2.{name}"), *args, dtype=dtype)


def _plus(total: Any, value: Any) -> Any:
    return T.bind(value if total is None else total + value)
