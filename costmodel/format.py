"""How a matrix of weights is stored."""

from __future__ import annotations

from dataclasses import dataclass

from targets.errors import UserError

FLOAT, INT8 = "float", "int8"  # what block-quantised matrix multiplications read: floats, or codes made of them
F32 = 4  # bytes of an activation, of a norm's and of a bias's weight


@dataclass(frozen=True)
class WeightType:
    """How one weight is stored, and what it takes to read it; counted from the kernels' loops.

    Attributes:
        bits: of one weight, scales aside.
        blocks: blocks of weights share a scale.
        cpu_unpack: vector operations for a register of weights before it is multiplied, where weights have scales;
            conversions from float16 are counted by the core (cpu_cycles.py).
        gpu_unpack: operations for a weight before it is multiplied.
    """

    bits: int
    blocks: bool = False
    cpu_unpack: float = 0.0
    gpu_unpack: float = 0.0


WEIGHT_TYPES = {
    "float32": WeightType(32),
    "float16": WeightType(16, gpu_unpack=1.0),  # convert
    "bfloat16": WeightType(16, gpu_unpack=1.0),
    "int8": WeightType(8, True, cpu_unpack=4.0, gpu_unpack=4.0),  # widen, to float, subtract zero, scale
    "int4": WeightType(4, True, cpu_unpack=6.0, gpu_unpack=5.0),  # mask or shift first, widen twice on the CPU
    "int2": WeightType(2, True, cpu_unpack=6.0, gpu_unpack=5.0),
    # a table of 16 numbers: NEON shift, mask, multiply, add, TBL of 4 registers, scale; GPU 4 tests, 15 selects
    "nf4": WeightType(4, True, cpu_unpack=9.0, gpu_unpack=22.0),
    "fp4": WeightType(4, True, cpu_unpack=9.0, gpu_unpack=22.0),
}


@dataclass(frozen=True)
class Format:
    """How a matrix is stored.

    Attributes:
        dtype: a name of WEIGHT_TYPES.
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
        if self.dtype not in WEIGHT_TYPES:
            raise UserError(f"weight format {self.dtype!r} is not known; known: {', '.join(WEIGHT_TYPES)}")
        if (self.block > 0) != self.type.blocks:
            scaled = " and ".join(name for name, kind in WEIGHT_TYPES.items() if kind.blocks)
            raise UserError(
                f"weight format {self.dtype} with blocks of {self.block}: {scaled} have scales, others none"
            )

    @property
    def type(self) -> WeightType:
        """How one weight is stored."""
        return WEIGHT_TYPES[self.dtype]

    @property
    def bits(self) -> int:
        """Bits of one weight, scales aside."""
        return self.type.bits

    @property
    def quantised(self) -> bool:
        """Whether weights are stored in blocks with scales."""
        return self.block > 0

    @property
    def integers(self) -> bool:
        """Whether weights are integers with scales, which int8 activations can be multiplied by."""
        return self.quantised and self.dtype.startswith("int")

    def nbytes(self, k: int, columns: int) -> int:
        """Bytes of a [k, columns] matrix: weights, scales and zero points."""
        size = columns * k * self.bits // 8
        if self.block:
            blocks = columns * -(-k // self.block)
            zero = 1 if self.zero_dtype == "uint8" else WEIGHT_TYPES[self.zero_dtype].bits // 8
            size += blocks * (WEIGHT_TYPES[self.scale_dtype].bits // 8 + (zero if self.zeros else 0))
        return size
