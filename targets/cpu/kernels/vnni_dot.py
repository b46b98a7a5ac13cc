"""Exact dot products of 32 int8 activations with quantised weights on x86-64 with VNNI, for a tile of rows and columns.

vpdpbusd adds four products of unsigned with signed bytes to a 32-bit sum, without saturation. Weights are the unsigned
side: 2- and 4-bit codes as they are, 8-bit ones, which are stored less 128, with the highest bit flipped back. A row's
four codes are the same for all columns: the instruction reads them from memory and repeats them itself.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from targets.cpu.kernels.integer_dot import Activations, Sums, Weights


def _vnni(lanes: int) -> Sums:
    """With vectors of that many columns."""
    octets, name = 4 * lanes, f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"

    def sums(vectors: list[Weights], given: Activations) -> list[list[Any]]:
        """One chain of additions for each vector and row."""
        totals = [[T.bind(T.broadcast(start, lanes)) for start in given.starts] for _ in vectors]
        place = 0
        for i in range(vectors[0].bits):
            given.ask(i, vectors[0].bits)
            operands = [_unsigned(weights, i, lanes) for weights in vectors]
            for half in range(len(operands[0])):
                for m, row in enumerate(given.rows):
                    four = T.reinterpret(given.part(row, 4 * place, 4), dtype="int32")
                    x = T.bind(T.reinterpret(T.broadcast(four, lanes), dtype=f"int8x{octets}"))
                    for total, operand in zip(totals, operands, strict=True):
                        intrinsic = T.llvm_lookup_intrinsic_id(name)
                        total[m] = T.bind(
                            T.call_llvm_intrin(intrinsic, total[m], operand[half], x, dtype=f"int32x{lanes}")
                        )
                place += 1
        return totals

    return sums


def _unsigned(weights: Weights, i: int, lanes: int) -> list[Any]:
    """Codes in word i, from 0 up."""
    flipped = T.broadcast(T.uint8(128), 4 * lanes)
    codes = [T.reinterpret(codes, dtype=f"uint8x{4 * lanes}") for codes in weights.codes(i, lanes)]
    return [T.bind(code ^ flipped if weights.bits == 8 else code) for code in codes]


VNNI_DOTS: dict[str, Sums] = {"vnni 256": _vnni(8), "vnni 512": _vnni(16)}
