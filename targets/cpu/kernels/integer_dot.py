"""Exact dot products of 32 int8 activations with a block of quantised weights, by what an x86-64 core multiplies with.

Words of weights are those of linear_nbits.py: 4 bit, unsigned codes; 8 bit, two's complement of the code less 128. Rows
that are written out one after the other share the unpacked weights, because LLVM finds equal expressions.

  pmadd  x86-64, AVX2: vpmaddubsw of unsigned codes of 4 bits (16 products of at most 15 * 127 fit into 16 bits), and
         vpmaddwd of 8-bit codes and activations widened to 16 bits
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T


def _call(name: str, *args: Any, dtype: str) -> Any:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype)


@dataclass(frozen=True)
class Dot:
    """The sums of one step of k for a vector of columns.

    Attributes:
        parts: registers of sums, each of as many columns.
        lanes, dtype: of one of them.
        words_first: all rows of a tile multiply a word before its next one, so that its operands are in registers; else
            all words of a row follow one another.
        add: (sum, words, codes) -> the sum and what a word of each of its columns adds to it; codes(first, count) are
            those of the row from the word's first one on.
        finish: (sums) -> int32 sums of the columns.
    """

    parts: int
    lanes: int
    dtype: str
    words_first: bool
    add: Callable[[Any, Any, Any], Any]
    finish: Callable[[list[Any]], Any]


def _pairs(low: Any, high: Any, lanes: int) -> Any:
    """Sums of neighbouring lanes of two vectors of `lanes` lanes, those of `low` first."""
    return T.Shuffle([low, high], list(range(0, 2 * lanes, 2))) + T.Shuffle([low, high], list(range(1, 2 * lanes, 2)))


def _add_4(total: Any, words: Any, codes: Any) -> Any:
    nibbles = T.broadcast(T.uint32(0x0F0F0F0F), 8)
    for half, four in enumerate((words & nibbles, T.shift_right(words, T.broadcast(T.uint32(4), 8)) & nibbles)):
        given = T.broadcast(T.reinterpret(codes(4 * half, 4), dtype="int32"), 8)
        bytes_ = T.reinterpret(four, dtype="uint8x32"), T.reinterpret(given, dtype="int8x32")
        total = total + _call("llvm.x86.avx2.pmadd.ub.sw", *bytes_, dtype="int16x16")
    return total


def _finish_4(sums: list[Any]) -> Any:
    return _call("llvm.x86.avx2.pmadd.wd", sums[0], T.broadcast(T.int16(1), 16), dtype="int32x8")


def _add_8(total: Any, words: Any, codes: Any) -> Any:
    given = T.reinterpret(T.broadcast(T.reinterpret(codes(0, 4), dtype="int64"), 4), dtype="int16x16")
    operands = T.cast(T.reinterpret(words, dtype="int8x16"), "int16x16"), given
    return total + _call("llvm.x86.avx2.pmadd.wd", *operands, dtype="int32x8")


def _finish_8(sums: list[Any]) -> Any:
    return _pairs(sums[0], sums[1], 8)


# name in targets/cpu/dot.py -> bits of a weight -> its dot product; words_first as measured on Zen 3
MAKERS: dict[str, dict[int, Dot]] = {
    "pmadd": {4: Dot(1, 16, "int16", False, _add_4, _finish_4), 8: Dot(2, 8, "int32", True, _add_8, _finish_8)},
}
