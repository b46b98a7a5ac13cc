"""4-bit codes that stand for 16 numbers of a table instead of being integers: NF4 and FP4 of bitsandbytes.

The numbers are those of onnxruntime's MatMulBnb4, bit for bit in float32 (NF4: Dettmers et al. 2023, QLoRA, appendix E;
FP4: a sign, two bits of exponent, one of mantissa, divided by the largest number).
"""

from __future__ import annotations

import struct
from typing import Any

CODE_TABLES: dict[str, tuple[float, ...]] = {
    "nf4": (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
    "fp4": (
        *(0.0, 0.0052083334885537624, 0.6666666865348816, 1.0, 0.3333333432674408, 0.5, 0.1666666716337204, 0.25),
        *(0.0, -0.0052083334885537624, -0.6666666865348816, -1.0, -0.3333333432674408, -0.5),
        *(-0.1666666716337204, -0.25),
    ),
}


def code_value(code: Any, table: str) -> Any:
    """The float32 number of a 4-bit code, an int32 expression."""
    from tvm.script import tirx as T

    return _select(code, [T.float32(number) for number in CODE_TABLES[table]])


def code_bits(code: Any, table: str) -> Any:
    """The number's bits as uint32, for OpenCL, where TVM writes floats with seven digits: too few to be exact."""
    from tvm.script import tirx as T

    numbers = struct.unpack("<16I", struct.pack("<16f", *CODE_TABLES[table]))
    return _select(code, [T.uint32(number) for number in numbers])


def _select(code: Any, numbers: list[Any]) -> Any:
    """15 selects by the bits of the code, which every processor has."""
    from tvm.script import tirx as T

    for bit in range(4):
        chosen = (code & T.int32(1 << bit)) != T.int32(0)
        numbers = [T.Select(chosen, high, low) for low, high in zip(numbers[::2], numbers[1::2], strict=True)]
    return numbers[0]


def number_of(code: Any, zero: Any, table: str) -> Any:
    """What a code, an int32 expression, stands for before it is scaled: a number of the table, or code - zero."""
    from tvm.script import tirx as T

    return code_value(code, table) if table else T.cast(code, "float32") - zero
