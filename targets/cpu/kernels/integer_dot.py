"""Exact dot products of 32 int8 activations with a block of quantised weights, by what an x86-64 core multiplies with.

Each returns the sums of one vector of columns as a TIR expression of int32 lanes. Words of weights are those of
linear_nbits.py: 4 bit, unsigned codes; 8 bit, two's complement of the code less 128. Rows that are written out one
after the other share the unpacked weights, because LLVM finds equal expressions.

  pmadd  x86-64, AVX2: vpmaddubsw of unsigned codes of 4 bits (16 products of at most 15 * 127 fit into 16 bits), and
         vpmaddwd of 8-bit codes and activations widened to 16 bits
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T


def _call(name: str, *args: Any, dtype: str) -> Any:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype)


def _sum(parts: list[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _pairs(low: Any, high: Any, lanes: int) -> Any:
    """Sums of neighbouring lanes of two vectors of `lanes` lanes, those of `low` first."""
    return T.Shuffle([low, high], list(range(0, 2 * lanes, 2))) + T.Shuffle([low, high], list(range(1, 2 * lanes, 2)))


def _pmadd_4(q: Any, panel: Any, word: Any, column: Any, x: Any, row: Any, k: Any) -> Any:
    parts, nibbles = [], T.broadcast(T.uint32(0x0F0F0F0F), 8)
    for i in range(4):
        words = q[panel, word + i, T.ramp(column, 1, 8)]
        for half, codes in enumerate((words & nibbles, T.shift_right(words, T.broadcast(T.uint32(4), 8)) & nibbles)):
            four = T.reinterpret(x[0, row, T.ramp(k + 8 * i + 4 * half, 1, 4)], dtype="int32")
            bytes_ = T.reinterpret(codes, dtype="uint8x32"), T.reinterpret(T.broadcast(four, 8), dtype="int8x32")
            parts.append(_call("llvm.x86.avx2.pmadd.ub.sw", *bytes_, dtype="int16x16"))
    return _call("llvm.x86.avx2.pmadd.wd", _sum(parts), T.broadcast(T.int16(1), 16), dtype="int32x8")


def _pmadd_8(q: Any, panel: Any, word: Any, column: Any, x: Any, row: Any, k: Any) -> Any:
    halves: list[list[Any]] = [[], []]
    for i in range(8):
        four = T.reinterpret(x[0, row, T.ramp(k + 4 * i, 1, 4)], dtype="int64")
        for half, parts in enumerate(halves):
            codes = T.reinterpret(q[panel, word + i, T.ramp(column + 4 * half, 1, 4)], dtype="int8x16")
            given = T.cast(codes, "int16x16"), T.reinterpret(T.broadcast(four, 4), dtype="int16x16")
            parts.append(_call("llvm.x86.avx2.pmadd.wd", *given, dtype="int32x8"))
    return _pairs(_sum(halves[0]), _sum(halves[1]), 8)


# name in targets/cpu/dot.py -> bits of a weight -> (q, panel, word, column, x, row, k) -> int32 sums of a vector
MAKERS: dict[str, dict[int, Callable[..., Any]]] = {
    "pmadd": {4: _pmadd_4, 8: _pmadd_8},
}
