"""What the calls of a target with slots take: a plan prices them, and a batch is scheduled by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from costmodel.schema.model import Size
from costmodel.schema.record import Entries, Record, SchemaError, Within

Seconds = tuple[Annotated[float, Within(above=0)], Annotated[float, Within(0)]]
Calls = Annotated[dict[Size, Seconds], Entries(1, 64)]


@dataclass(frozen=True)
class BatchPrediction(Record):
    """Seconds of calls by width: on empty caches, and what each token before the rows adds.

    Attributes:
        row_calls: rows that are each of a text of its own; the tokens before all rows of a call are added up.
        read_calls: tokens of a prompt that are read together, with the logits of one row.
        chunks: those of them that are chunks, ascending; without any the widest is.
        round_s: the loop around the calls of a round.
    """

    row_calls: Calls
    read_calls: Calls
    round_s: Annotated[float, Within(0)] = 0.0
    chunks: tuple[Size, ...] = ()

    def __post_init__(self) -> None:
        """Sort by width; a call of one row must be among them, and those that read the chunks."""
        if 1 not in self.row_calls:
            raise SchemaError("row_calls has no call of one row")
        for name in ("row_calls", "read_calls"):
            object.__setattr__(self, name, dict(sorted(getattr(self, name).items())))
        if not {*self.chunks} <= {*self.read_calls}:
            raise SchemaError(f"read_calls has not all of the chunks {list(self.chunks)}")
        object.__setattr__(self, "chunks", tuple(sorted(self.chunks)) or (max(self.read_calls),))

    @property
    def most_rows(self) -> int:
        """Rows of the widest call."""
        return max(self.row_calls)

    def row_width(self, rows: int) -> int:
        """The narrowest call that has so many rows."""
        return next(width for width in self.row_calls if width >= rows)

    def read_width(self, tokens: int) -> int:
        """The narrowest call that reads so many tokens."""
        return next(width for width in self.read_calls if width >= tokens)

    def row_call_s(self, width: int, past: float) -> float:
        """A call whose rows have `past` tokens before them on average, padded rows among them."""
        start, token = self.row_calls[width]
        return start + token * width * past

    def read_call_s(self, width: int, past: float) -> float:
        """A call that reads a piece of a prompt after `past` tokens."""
        start, token = self.read_calls[width]
        return start + token * past
