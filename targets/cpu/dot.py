"""How cores multiply int8 activations with block-quantised weights: what TVM is not needed for.

Counts are of vector instructions in the loops of targets/cpu/kernels/linear_int.py, whose sums
targets/cpu/kernels/integer_dot.py makes.
"""

from __future__ import annotations

from dataclasses import dataclass

STEP = 32  # values of k that have one integer sum; activations have one scale for them


@dataclass(frozen=True)
class IntegerDot:
    """The instructions of a core for one step of k and one vector of columns; keys are bits of a weight.

    Attributes:
        columns: of one vector.
        activations: type in which activations are stored.
        unpack: instructions that make operands of the stored weights, once for the rows of a tile.
        row: instructions for a row: products, sums, and what scales and adds them up.
        row_loads: vector loads of activations for a row.
    """

    columns: int
    activations: dict[int, str]
    unpack: dict[int, float]
    row: dict[int, float]
    row_loads: dict[int, float]


DOTS = {
    "pmadd": IntegerDot(8, {4: "int8", 8: "int16"}, {4: 12, 8: 16}, {4: 20, 8: 36}, {4: 8, 8: 8}),
    "sdot": IntegerDot(4, {4: "int8", 8: "int8"}, {4: 8, 8: 0}, {4: 12, 8: 12}, {4: 2, 8: 2}),
    "smull": IntegerDot(4, {4: "int8", 8: "int8"}, {4: 8, 8: 0}, {4: 25, 8: 38}, {4: 8, 8: 8}),
}
ROWS = 4  # rows of a tile: written out one after the other, so that they share the unpacked weights


def takes_codes(block: int, k: int) -> bool:
    """Whether there are integer kernels for weights with a scale for `block` of k values: all are whole steps."""
    return block > 0 and k % STEP == 0 and block % STEP == 0
