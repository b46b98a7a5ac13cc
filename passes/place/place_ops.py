"""Which processor each operator of a decoder runs on: a rule becomes one decision, with its reason, per operator.

A part (the embedding; of each layer the attention, from its norm to the residual addition, and the feed-forward part,
likewise; the head) is placed as a whole, because between two parts only the residual stream [1, n, hidden] crosses,
and inside one more would. The importer labels each node with its part (passes/onnx/label_parts.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from costmodel.place import HEAD, Part, Place
from passes.onnx.label_parts import part_of
from passes.relax import dialect as D
from passes.relax.rebuild import bindings


@dataclass(frozen=True)
class PlacedOp:
    """One operator of `main`: its variable and name there, its part, its processor and why."""

    variable: str
    operator: str
    part: Part
    processor: str
    reason: str


def place_ops(func: Any, origins: Sequence[Any], place: Place, layers: int, why: str) -> list[PlacedOp]:
    """Place every binding of a decoder's `main`, in order.

    Args:
        func: straight-line decoder as it was imported, before anything is fused.
        origins: the labelled ONNX node of each binding (RelaxDecoder.origins); what follows them is the choice of the
            next token and the tuple of the outputs, parts of the head.
        place: the rule.
        layers: layers of the model.
        why: where the rule comes from: the end of each reason.

    Raises:
        UserError: the rule names layers that are not there.
    """
    placed = []
    for i, binding in enumerate(bindings(func)):
        part = part_of(origins[i]) if i < len(origins) else Part(HEAD)
        assert part is not None, f"{origins[i].name} has no label"
        processor = place.of(part, layers)
        reason = f"{part.text} on the {processor.upper()}: {why}"
        name = D.op_name(binding.value) or type(binding.value).__name__
        placed.append(PlacedOp(binding.var.name, name, part, processor, reason))
    return placed
