"""What the integer dot products of a core are made of: weights and activations of one step of k, and their sums.

Words of weights are those of linear_nbits.py. neon_dot.py, pmadd_dot.py and vnni_dot.py make the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from targets.cpu.dot import STEP


@dataclass(frozen=True)
class Weights:
    """The words of one step of k and one vector of columns: q[panel, word + i, column + lane], i = 0 .. bits - 1."""

    q: Any
    panel: Any
    word: Any
    column: Any
    bits: int

    def codes(self, i: int, columns: int = 4, first: int = 0) -> list[Any]:
        """Codes in word i, 4 of k for each of these columns, in order of k: 8 / bits such vectors.

        They are unsigned (2 and 4 bit), or the code less 128 (8 bit), in int8 lanes.
        """
        words, lanes = self.q[self.panel, self.word + i, T.ramp(self.column + first, 1, columns)], 4 * columns
        if self.bits == 8:
            return [T.bind(T.reinterpret(words, dtype=f"int8x{lanes}"))]
        octets = T.bind(T.reinterpret(words, dtype=f"uint8x{lanes}"))
        shifts = [T.broadcast(T.uint8(shift), lanes) for shift in range(self.bits, 8, self.bits)]
        parts = [octets, *(T.shift_right(octets, shift) for shift in shifts)]
        mask = T.broadcast(T.uint8((1 << self.bits) - 1), lanes)
        codes = [*(part & mask for part in parts[:-1]), parts[-1]]
        return [T.bind(T.reinterpret(part, dtype=f"int8x{lanes}")) for part in codes]

    def eight(self, i: int, columns: int = 4, first: int = 0) -> list[Any]:
        """Two vectors of codes, 8 of k for each of these columns, from 8 * i on."""
        if self.bits == 8:
            return [*self.codes(2 * i, columns, first), *self.codes(2 * i + 1, columns, first)]
        word, part = divmod(8 * i, 32 // self.bits)
        return self.codes(word, columns, first)[part // 4 :][:2]


@dataclass(frozen=True)
class Activations:
    """Codes of a tile's rows in one step.

    Attributes:
        x: as quantise_rows writes them, [1, n, k]; places of several rows are counted from the first of them.
        n: rows.
        rows: which rows.
        step: which step.
        starts: for each row what its sums begin with, int32.
        by_step: x is filled step by step, see IntegerDot.
        ask: (part, parts) asks for such a part of the weights that are read later; on x86-64 all parts are to be asked
            for in order, between the products.
    """

    x: Any
    n: int
    rows: list[Any]
    step: Any
    starts: list[Any]
    by_step: bool
    ask: Callable[[int, int], None]

    def part(self, row: Any, first: int, length: int) -> Any:
        """Codes of a row from the step's code `first` on."""
        place = (self.step * self.n + row) * STEP + first
        if self.by_step:
            return self.x[0, 0, T.ramp(place, 1, length)]
        return self.x[0, row, T.ramp(self.step * STEP + first, 1, length)]

    def pair(self, row: Any, first: int) -> Any:
        """Eight codes of a row, which is even, and eight of the next."""
        place = 2 * (self.step * STEP + first)
        return self.x[0, row, T.ramp(place, 1, 16)]


# (vectors side by side, rows) -> int32 sums[vector][row]
Sums = Callable[[list[Weights], Activations], list[list[Any]]]
