"""Exact dot products of 32 int8 activations with quantised weights on aarch64, for a tile of rows and columns.

Words of weights are those of linear_nbits.py; a vector has four columns. What LLVM gets is in an order that in-order
cores can run as it stands: operands are unpacked once for all rows, and sums that do not wait for each other alternate.

  sdot   with the dot product instructions: 4 columns x 4 of k, the activations by lane
  smmla  with the int8 matrix instructions: 2 columns x 8 of k, times pairs of rows
  smull  without either: 2 columns x 4 of k, products of 16 bits. Of 2- and 4-bit codes (at most 15 * 127) all 8 of a
         lane are added in 16 bits, of 8-bit codes (at most 128 * 127) two
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from targets.cpu.kernels.integer_dot import Activations, Sums, Weights

LANES = 4  # columns of a vector


def sdot(vectors: list[Weights], given: Activations) -> list[list[Any]]:
    """One chain of additions for each vector and row."""
    totals = [[T.bind(T.broadcast(start, LANES)) for start in given.starts] for _ in vectors]
    sixteen: list[Any] = []
    place = 0
    for i in range(vectors[0].bits):
        operands = [weights.codes(i) for weights in vectors]
        for half in range(len(operands[0])):
            if place % 4 == 0:
                parts = [T.bind(given.part(row, 4 * place, 16)) for row in given.rows]
                sixteen = [T.reinterpret(part, dtype="int32x4") for part in parts]
            for total, operand in zip(totals, operands, strict=True):
                for m, x in enumerate(sixteen):
                    lane = T.reinterpret(T.Shuffle([x], [place % 4] * 4), dtype="int8x16")
                    total[m] = _call("sdot.v4i32.v16i8", total[m], operand[half], lane, dtype="int32x4")
            place += 1
    return totals


def smmla(vectors: list[Weights], given: Activations) -> list[list[Any]]:
    """Two chains for each vector and pair of rows, one for the first two columns, one for the last two."""
    firsts = given.rows[::2]
    starts = [T.broadcast(start, LANES) for start in given.starts]
    both = [T.Shuffle([starts[i], starts[i + 1]], [0, 1, 4, 5]) for i in range(0, len(starts), 2)]
    totals = [[[T.bind(start) for start in both] for _ in range(2)] for _ in vectors]
    for i in range(4):
        xs = [T.bind(given.pair(row, 8 * i)) for row in firsts]
        for total, weights in zip(totals, vectors, strict=True):
            words = [T.reinterpret(four, dtype="int32x4") for four in weights.eight(i)]
            for half, lanes in enumerate(([0, 4, 1, 5], [2, 6, 3, 7])):
                operand = T.bind(T.reinterpret(T.Shuffle(words, lanes), dtype="int8x16"))
                for p, x in enumerate(xs):
                    total[half][p] = _call("smmla.v4i32.v16i8", total[half][p], x, operand, dtype="int32x4")
    return [
        [T.Shuffle(list(blocks), [i, i + 1, i + 4, i + 5]) for blocks in zip(*total, strict=True) for i in (0, 2)]
        for total in totals
    ]


def smull(vectors: list[Weights], given: Activations) -> list[list[Any]]:
    """Two chains for each vector and row, one for the first two columns, one for the last two."""
    halves = [(weights, first) for weights in vectors for first in (0, 2)]
    chains: list[list[Any]] = [[None] * len(given.rows) for _ in halves]
    for i in range(4):
        xs = [[_repeated(given.part(row, 8 * i + part, 4)) for part in (0, 4)] for row in given.rows]
        for chain, (weights, first) in zip(chains, halves, strict=True):
            operands = weights.eight(i, 2, first)
            for m, x in enumerate(xs):
                low, high = (_call("smull.v8i16", *pair, dtype="int16x8") for pair in zip(operands, x, strict=True))
                if weights.bits < 8:
                    chain[m] = T.bind(_plus(chain[m], low) + high)
                else:
                    chain[m] = T.bind(_plus(chain[m], _widened(T.bind(low + high))))
    if vectors[0].bits < 8:
        chains = [[_widened(narrow) for narrow in chain] for chain in chains]
    pairs = [zip(*chains[h : h + 2], strict=True) for h in range(0, len(chains), 2)]
    return [
        [_neighbours(*pair) + T.broadcast(start, LANES) for pair, start in zip(of_rows, given.starts, strict=True)]
        for of_rows in pairs
    ]


NEON_DOTS: dict[str, Sums] = {"sdot": sdot, "smmla": smmla, "smull": smull}


def _call(name: str, *args: Any, dtype: str) -> Any:
    intrinsic = T.llvm_lookup_intrinsic_id(f"llvm.aarch64.neon.{name}")
    return T.bind(T.call_llvm_pure_intrin(intrinsic, *args, dtype=dtype))


def _repeated(four: Any) -> Any:
    """Four int8 lanes twice."""
    return T.bind(T.reinterpret(T.broadcast(T.reinterpret(four, dtype="int32"), 2), dtype="int8x8"))


def _plus(total: Any, value: Any) -> Any:
    return value if total is None else T.bind(total + value)


def _widened(products: Any) -> Any:
    return _call("saddlp.v4i32.v8i16", products, dtype="int32x4")


def _neighbours(low: Any, high: Any) -> Any:
    """Sums of neighbouring lanes."""
    return _call("addp.v4i32", low, high, dtype="int32x4")
