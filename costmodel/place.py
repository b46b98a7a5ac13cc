"""Where one model runs, as a rule: whole on a processor, or one part of it there and the rest on the other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar

from costmodel.schema.record import OneOf, Record, SchemaError
from targets.backend import HOST, names
from targets.errors import UserError

EMBEDDING, ATTENTION, FFN, HEAD = "embedding", "attention", "ffn", "head"
_UNIT = rf"{EMBEDDING}|{HEAD}|[0-9]{{1,9}}"
_PLACE = re.compile(rf"([a-z][a-z0-9_]*)(?::(?:({FFN}|{ATTENTION})|({_UNIT})(?:-({_UNIT}))?))?")


@dataclass(frozen=True)
class Registered:
    """The name of a kind of processor."""

    def refusal(self, value: str) -> str | None:
        """See :class:`costmodel.schema.record.Bound`."""
        return None if value in names() else f"none of {', '.join(names())}"


ProcessorName = Annotated[str, Registered()]


@dataclass(frozen=True)
class Place(Record):
    """Where one model runs.

    Attributes:
        processor: its kind, a name of targets/backend.py: of the whole model, or of the part named below. The rest
            runs on the CPU, or, where the CPU has the part, on the kind registered next to it: the GPU.
        kind: "attention" or "ffn" of every layer, or "" for none.
        first, last: a range of parts, both inclusive: "embedding", "head" or the number of a layer; "" for none.
    """

    unknown_keys_refused: ClassVar[bool] = True
    processor: ProcessorName
    kind: Annotated[str, OneOf(("", ATTENTION, FFN))] = ""
    first: str = ""
    last: str = ""

    def __post_init__(self) -> None:
        """Refuse what `parse` does not read, and a range whose ends are no units.

        Raises:
            SchemaError: a kind and a range, one end of a range alone, or an end that is a kind or has no name.
        """
        ends = [end for end in (self.first, self.last) if end]
        if _PLACE.fullmatch(self.text) is None or len(ends) == 1 or not all(re.fullmatch(_UNIT, end) for end in ends):
            raise SchemaError(f"{self.text[:60]!r} is no place")

    @staticmethod
    def parse(text: str) -> Place:
        """Read ``cpu``, ``gpu:4-head``, ``gpu:ffn`` and the like.

        Raises:
            ValueError: it is none of them.
        """
        found = _PLACE.fullmatch(text)
        if found is None or found[1] not in names():
            raise ValueError(f"{text!r} is no place")
        processor, kind, first, last = found.groups(default="")
        return Place(processor, kind, first, last or first)

    @property
    def text(self) -> str:
        """What `parse` reads."""
        named = self.first if self.first == self.last else f"{self.first}-{self.last}"
        part = f"{self.kind}{named}"
        return f"{self.processor}:{part}" if part else self.processor

    @property
    def whole(self) -> bool:
        """The whole model on one processor."""
        return not (self.kind or self.first)

    @property
    def processors(self) -> tuple[str, ...]:
        """Every processor that has a part, the CPU first."""
        return (self.processor,) if self.whole else (HOST, self.processor if self.rest == HOST else self.rest)

    @property
    def rest(self) -> str:
        """The processor of what the rule does not name."""
        return HOST if self.processor != HOST else next(name for name in names() if name != HOST)

    def of(self, part: Part, layers: int) -> str:
        """The processor of a part.

        Raises:
            UserError: the range names a layer that a model of `layers` layers does not have, or ends before it begins.
        """
        if self.whole:
            return self.processor
        there = part.kind == self.kind
        if self.first:
            start, end = (_index(name, layers, self.text) for name in (self.first, self.last))
            if start > end:
                raise UserError(f"placement {self.text}: the range ends before it begins")
            there = start <= part.unit(layers) <= end
        return self.processor if there else self.rest


@dataclass(frozen=True)
class ReasonedPlace(Record):
    """Where one model runs, and why: a sentence that begins with its role."""

    place: Place
    reason: str = "as given"


@dataclass(frozen=True)
class Part:
    """A part of a decoder: `kind` is one of the names above, `layer` counts from 0 (0 for embedding and head)."""

    kind: str
    layer: int = 0

    @property
    def text(self) -> str:
        """For people."""
        return self.kind if self.kind in (EMBEDDING, HEAD) else f"{self.kind} of layer {self.layer}"

    def unit(self, layers: int) -> int:
        """Its place in the row embedding, layer 0, ..., head."""
        return {EMBEDDING: 0, HEAD: layers + 1}.get(self.kind, self.layer + 1)


def _index(name: str, layers: int, rule: str) -> int:
    if name in (EMBEDDING, HEAD):
        return 0 if name == EMBEDDING else layers + 1
    if int(name) >= layers:
        raise UserError(f"placement {rule}: there is no layer {name}, the model has 0 to {layers - 1}")
    return int(name) + 1
