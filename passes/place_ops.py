"""Which processor each operator of a decoder runs on: a rule becomes one decision, with its reason, per operator.

A decoder is seen as its parts in order: the embedding; of each layer the attention (from its norm to the residual
addition) and the FFN (likewise); the head. A part is placed as a whole, because between two parts only the residual
stream [1, n, hidden] crosses, and inside one more would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tvm import relax

from costmodel.place import ATTENTION, EMBEDDING, FFN, HEAD, Part, Place
from passes import dialect as D
from passes.rebuild import bindings

_NORMS = ("hsd.rms_norm", "hsd.layer_norm")


@dataclass(frozen=True)
class PlacedOp:
    """One operator of `main`: its variable and name there, its part, its processor and why."""

    variable: str
    operator: str
    part: Part
    processor: str
    reason: str


def place_ops(func: Any, place: Place, layers: int, why: str) -> list[PlacedOp]:
    """Place every binding of a decoder's `main`, in order.

    Args:
        func: straight-line decoder as it was imported, before anything is fused.
        place: the rule.
        layers: layers of the model.
        why: where the rule comes from: the end of each reason.

    Raises:
        UserError: the rule names layers that are not there.
    """
    placed = []
    for binding, part in zip(bindings(func), parts(func, layers), strict=True):
        processor = place.of(part, layers)
        reason = f"{part.text} on the {processor.upper()}: {why}"
        name = D.op_name(binding.value) or type(binding.value).__name__
        placed.append(PlacedOp(binding.var.name, name, part, processor, reason))
    return placed


def parts(func: Any, layers: int) -> Iterator[Part]:
    """The part of each binding: residual additions end attentions and FFNs, the first norm begins layer 0."""
    part, attended = Part(EMBEDDING), False
    for binding in bindings(func):
        operator = D.op_name(binding.value)
        if part.kind == EMBEDDING and operator in _NORMS:
            part = Part(ATTENTION)
        yield part
        attended |= operator == "hsd.attention"
        if operator != "relax.add" or any(not isinstance(a, relax.Var) or a.ty.ndim != 3 for a in binding.value.args):
            continue
        if part.kind == ATTENTION and attended:
            part, attended = Part(FFN, part.layer), False
        elif part.kind == FFN:
            part = Part(HEAD) if part.layer + 1 == layers else Part(ATTENTION, part.layer + 1)
