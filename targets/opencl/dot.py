"""How a GPU multiplies int8 activations with block-quantised weights: what TVM is not needed for.

Counts are of issue slots in the loops of targets/opencl/kernels/linear_int.py, read off its source. A dot product takes
the slot of a fused multiply-add on Bifrost (Mesa's disassembler has it there); for Valhall that is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

CODES = 4  # of int8 in a word, as integer dot products take them


@dataclass(frozen=True)
class GpuDot:
    """Issue slots for one step of k (targets/cpu/dot.py) and one column; keys are bits of a weight.

    Attributes:
        unpack: that make operands of the stored weights, once for the rows of a work-item.
        row: of one row: products and their sums; to float, times the weight's scale, times the row's.
        zero_row: more for a row with zero points.
        scale: for a scale, once for its block; `zero` more with zero points.
    """

    unpack: dict[int, float]
    row: float
    zero_row: float = 1.0
    scale: float = 1.0
    zero: float = 3.0


DOT = GpuDot(unpack={2: 14, 4: 12, 8: 0}, row=8 + 3)
# bytes become numbers of 16 bits, two at a time; then 2 products, an addition, and two with conversions for 4 codes
PLAIN = GpuDot(unpack={2: 14 + 16, 4: 12 + 16, 8: 16}, row=8 * 6 + 3)
CODES_OF_A_VALUE = 8.0  # issue slots that make the code of one value
