"""How cores multiply int8 activations with block-quantised weights: what TVM is not needed for.

Counts are of vector instructions in the loops of targets/cpu/kernels/linear_int.py, whose sums neon_dot.py,
pmadd_dot.py and vnni_dot.py make. Those of VNNI are of cores with GFNI, which moves codes of 2 and 4 bits down at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

STEP = 32  # values of k that have one integer sum; activations have one scale for them


@dataclass(frozen=True)
class IntegerDot:
    """The instructions of a core for one step of k and one vector of columns; keys are bits of a weight.

    Attributes:
        instruction: that multiplies, the name of what makes its sums.
        columns: of one vector.
        activations: type in which activations are stored.
        unpack: instructions that make operands of the stored weights, once for the rows of a tile.
        row: instructions for a row: products, sums, and what scales and adds them up.
        row_loads: vector loads of activations for a row.
        side: vectors of columns beside each other in a tile of 1, 2, ... rows, as many as there are numbers: what LLVM
            keeps in registers. An in-order core hides the latency of its additions only behind those of other sums.
        alone: what such a core multiplies with where a row has no pair; "": rows are multiplied one by one. Else rows
            are multiplied two at a time, and the codes of two alternate every 8 of k (quantise_rows).
        by_step: codes, scales and sums of one step lie side by side for all rows, in place of whole rows.
        codes: cycles to make the codes of a row on an out-of-order core. 21 were measured on Zen 5; on Zen 3 40 of an
            earlier way, and llvm-mca has two thirds of its cycles for this one.
        unsigned: weights are multiplied as unsigned bytes, so 8-bit ones, which are stored less 128, as what they were.
        many: the most rows of a tile where more are computed than `side` has numbers; 0: as many as those. Several
            vectors side by side share the loads of activations: on Zen 5 16 and 32 rows took 5 to 7 % less with int8
            weights in tiles of 4 by 2 vectors than in tiles of 8 by 1, 3 to 5 % less with int4 ones.
    """

    instruction: str
    columns: int
    activations: dict[int, str]
    unpack: dict[int, float]
    row: dict[int, float]
    row_loads: dict[int, float]
    side: tuple[int, ...]
    alone: str = ""
    by_step: bool = False
    codes: float = 40.0
    unsigned: bool = False
    many: int = 0

    @property
    def pairs(self) -> bool:
        """Whether two rows are multiplied at a time."""
        return self.alone != ""

    def offset(self, bits: int) -> int:
        """What the multiplied codes of weights are larger than the whole numbers that are meant, q - 2^(bits - 1)."""
        return 1 << (bits - 1) if bits < 8 or self.unsigned else 0

    def tile_rows(self, n: int) -> int:
        """Rows of a tile when n are computed: equal tiles, the last of which may overlap the one before it."""
        most = self.many if self.many and n > len(self.side) else len(self.side)
        rows = -(-n // -(-n // most))
        return rows + rows % 2 if self.pairs else rows


_INT8, _WIDENED = {2: "int8", 4: "int8", 8: "int8"}, {2: "int8", 4: "int8", 8: "int16"}
_SDOT = IntegerDot(
    "sdot", 4, _INT8, {2: 12, 4: 8, 8: 0}, {2: 12, 4: 12, 8: 12}, {2: 2, 4: 2, 8: 2}, (4, 2, 1, 1, 1, 1, 1, 1)
)
_SMMLA = IntegerDot(
    "smmla", 4, _INT8, {2: 20, 4: 16, 8: 8}, {2: 9, 4: 9, 8: 9}, {2: 2, 4: 2, 8: 2}, (4, 4, 2, 2, 1, 1, 1, 1), "sdot"
)
_SMULL = IntegerDot("smull", 4, _INT8, {2: 24, 4: 16, 8: 0}, {2: 23, 4: 23, 8: 28}, {2: 4, 4: 4, 8: 4}, (4, 2))
_PMADD = IntegerDot(
    "pmadd",
    8,
    _WIDENED,
    {2: 14, 4: 12, 8: 16},
    {2: 20, 4: 20, 8: 36},
    {2: 8, 4: 8, 8: 8},
    (2, 1, 1, 1),
    by_step=True,
    codes=27,
)
_VNNI = IntegerDot(
    "vnni 512",
    16,
    _INT8,
    {2: 12, 4: 8, 8: 8},
    {2: 11, 4: 11, 8: 11},
    {2: 8, 4: 8, 8: 8},
    (4, 2, 2, 2, 1, 1, 1, 1),
    codes=21,
    unsigned=True,
    many=4,
)
DOTS = {
    "pmadd": _PMADD,
    "sdot": _SDOT,
    "sdot in order": replace(_SDOT, row_loads={2: 1, 4: 1, 8: 1}, side=(4, 4, 2, 2, 1, 1, 1, 1)),
    "smmla": _SMMLA,
    "smmla in order": replace(_SMMLA, alone="sdot in order"),
    "vnni 256": replace(_VNNI, instruction="vnni 256", columns=8, side=(2, 2, 1, 1), by_step=True),
    "vnni 512": _VNNI,
    "smull": _SMULL,
}


def takes_codes(block: int, k: int) -> bool:
    """Whether there are integer kernels for weights with a scale for `block` of k values: all are whole steps."""
    return block > 0 and k % STEP == 0 and block % STEP == 0


def dot_of(name: str, n: int) -> str:
    """Which of DOTS a core multiplies n rows with, where `name` is its best.

    Operands of pairs of rows are interleaved in registers, which costs two rows what it gains.
    """
    return DOTS[name].alone if DOTS[name].pairs and (n < 4 or n % 2) else name
