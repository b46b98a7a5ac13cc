"""Exact dot products of 32 int8 activations with a block of quantised weights, by what a core multiplies with.

Each returns the sums of one vector of columns as a TIR expression of int32 lanes. Words of weights are those of
linear_nbits.py: 4 bit, unsigned codes; 8 bit, two's complement of the code less 128. Rows that are written out one
after the other share the unpacked weights, because LLVM finds equal expressions.

  pmadd  x86-64, AVX2: vpmaddubsw of unsigned codes of 4 bits (16 products of at most 15 * 127 fit into 16 bits), and
         vpmaddwd of 8-bit codes and activations widened to 16 bits
  sdot   aarch64 with the dot product instructions: four products a lane, the activations by lane
  smull  aarch64 without: 16-bit products, added in 16 bits at 4 bits, in 32 at 8
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

OFFSET = {4: 8, 8: 0}  # codes are this much larger than the whole numbers that are meant: q - 8, and q - 128 as stored


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


def _codes(words: Any, bits: int) -> list[Any]:
    """The codes in a vector of four words, 4 of k for each column, in order of k; int8 lanes."""
    octets = T.reinterpret(words, dtype="uint8x16")
    if bits == 8:
        return [T.reinterpret(octets, dtype="int8x16")]
    low, high = octets & T.broadcast(T.uint8(15), 16), T.shift_right(octets, T.broadcast(T.uint8(4), 16))
    return [T.reinterpret(low, dtype="int8x16"), T.reinterpret(high, dtype="int8x16")]


def _sdot(bits: int) -> Callable[..., Any]:
    def dot(q: Any, panel: Any, word: Any, column: Any, x: Any, row: Any, k: Any) -> Any:
        total, place = T.broadcast(T.int32(0), 4), 0
        for i in range(bits):  # 32 values of `bits` bits: so many words
            for codes in _codes(q[panel, word + i, T.ramp(column, 1, 4)], bits):
                sixteen = T.reinterpret(x[0, row, T.ramp(k + place // 4 * 16, 1, 16)], dtype="int32x4")
                lane = T.reinterpret(T.Shuffle([sixteen], [place % 4] * 4), dtype="int8x16")
                total = _call("llvm.aarch64.neon.sdot.v4i32.v16i8", total, codes, lane, dtype="int32x4")
                place += 1
        return total

    return dot


def _smull(bits: int) -> Callable[..., Any]:
    def dot(q: Any, panel: Any, word: Any, column: Any, x: Any, row: Any, k: Any) -> Any:
        halves: list[list[Any]] = [[], []]
        place = 0
        for i in range(bits):
            for codes in _codes(q[panel, word + i, T.ramp(column, 1, 4)], bits):
                four = T.reinterpret(x[0, row, T.ramp(k + 4 * place, 1, 4)], dtype="int32")
                given = T.reinterpret(T.broadcast(four, 2), dtype="int8x8")
                for half, parts in enumerate(halves):
                    eight = T.Shuffle([codes], list(range(8 * half, 8 * half + 8)))
                    product = _call("llvm.aarch64.neon.smull.v8i16", eight, given, dtype="int16x8")
                    parts.append(product if bits == 4 else _widened(product))
                place += 1
        low, high = (_widened(_sum(parts)) if bits == 4 else _sum(parts) for parts in halves)
        return _pairs(low, high, 4)

    return dot


def _widened(products: Any) -> Any:
    return _call("llvm.aarch64.neon.saddlp.v4i32.v8i16", products, dtype="int32x4")


# name in targets/cpu/dot.py -> bits of a weight -> (q, panel, word, column, x, row, k) -> int32 sums of a vector
MAKERS: dict[str, dict[int, Callable[..., Any]]] = {
    "pmadd": {4: _pmadd_4, 8: _pmadd_8},
    "sdot": {4: _sdot(4), 8: _sdot(8)},
    "smull": {4: _smull(4), 8: _smull(8)},
}
