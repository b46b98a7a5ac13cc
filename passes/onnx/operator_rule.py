"""What the importer may say of one operator: who reads its attributes and inputs, and what they must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from passes.onnx.rewrite.local_functions import HIDDEN

RUN = "run_subgraph, shapes"
NO_EFFECT = ""  # unless another attribute or input has a value that is refused
LIFTED = "load"  # onnx_ir makes an initialiser of it
LAST_AXIS = "last_axis"  # passes/onnx/rewrite/last_axis.py: it is the last axis, written as -1


@dataclass(frozen=True)
class Must:
    """An attribute that no pass reads: the values that it may have, its default (None: it has none) among them."""

    values: tuple[int | float | str, ...]
    default: int | float | str | None = None


@dataclass(frozen=True)
class Range:
    """A number that `reader` reads and that lies between two others, both included."""

    reader: str
    least: float
    most: float


@dataclass(frozen=True)
class Rule:
    """What the importer does with one operator.

    Attributes:
        attributes: by name: the modules that read it ("a, b"), a `Range` of it, or the `Must` it is held to.
        inputs: of the optional inputs, by their place: the modules that read it, or None: it must be absent.
        required: of onnxruntime's operators: how many inputs must be given.
        needed: of onnxruntime's operators: attributes that must be given.
        schema: where the inputs and the types of attributes are stated: "onnx", or here ("onnxruntime").
    """

    attributes: Mapping[str, str | Range | Must] = field(default_factory=dict)
    inputs: Mapping[int, str | None] = field(default_factory=dict)
    required: int = 0
    needed: tuple[str, ...] = ()
    schema: str = "onnx"

    @property
    def most_inputs(self) -> int:
        """Inputs that one of onnxruntime's operators may have here."""
        return max([self.required, *(place + 1 for place in self.inputs)])


SIZE = (1, (1 << 31) - 1)
LARGEST = -HIDDEN
SMALLEST = 1e-30
EPSILON = Range("fuse_rms_norm, translate", SMALLEST, LARGEST)  # at 0 a row of zeros, as padding may be, is NaN
ROTARY: dict[str, str | Range | Must] = {
    "interleaved": RUN,
    **dict.fromkeys(("num_heads", "rotary_embedding_dim"), Range(RUN, 0, SIZE[1])),  # 0: it is in the shape
}
