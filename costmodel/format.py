"""How a matrix of weights is stored."""

from __future__ import annotations

from dataclasses import dataclass

from targets.errors import UserError

F32 = 4  # bytes of an activation, of a KV value, of a norm's and of a bias's weight
_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class Format:
    """How a matrix is stored.

    Attributes:
        dtype: float32, float16, bfloat16, int8 or int4.
        block: input values that share a scale; 0 without scales.
        scale_dtype: of the scales.
        zeros: a zero point for each scale.
        zero_dtype: of the zero points: uint8 (one byte, as the packed layout keeps them), float16 or float32.
    """

    dtype: str = "float32"
    block: int = 0
    scale_dtype: str = "float32"
    zeros: bool = False
    zero_dtype: str = "uint8"

    def __post_init__(self) -> None:
        """Refuse formats that no kernel reads."""
        if self.dtype not in _BITS:
            raise UserError(f"weight format {self.dtype!r} is not known; known: {', '.join(_BITS)}")
        if (self.block > 0) != (self.dtype in ("int8", "int4")):
            raise UserError(
                f"weight format {self.dtype} with blocks of {self.block}: int8 and int4 have scales, others none"
            )

    @property
    def bits(self) -> int:
        """Bits of one weight, scales aside."""
        return _BITS[self.dtype]

    @property
    def quantised(self) -> bool:
        """Whether weights are stored in blocks with scales."""
        return self.block > 0

    def nbytes(self, k: int, columns: int) -> int:
        """Bytes of a [k, columns] matrix: weights, scales and zero points."""
        size = columns * k * self.bits // 8
        if self.block:
            blocks = columns * -(-k // self.block)
            zero = _BITS.get(self.zero_dtype, 8) // 8 if self.zeros else 0
            size += blocks * (_BITS[self.scale_dtype] // 8 + zero)
        return size
