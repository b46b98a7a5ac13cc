"""What the decoding loops ask of a model, and nothing more: steps with named outputs, and waiting for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from targets.errors import UserError

LOGITS, CHOICE = "logits", "choice"
Outputs = Mapping[str, npt.NDArray[Any]]


class ContextFull(Exception):
    """A forward pass was asked to write KV rows beyond the model's context."""


class NotFiniteError(UserError):
    """A model computed NaN or infinity; the message is one line that names it."""

    def __init__(self, model: str, where: str = "") -> None:
        """Name the model, and where in the text it happened."""
        super().__init__(
            f"the {model} computed logits that are not finite{where}: copy the bundle again, or build it again and "
            "check it with `hetero-sd verify`"
        )


class Pending(Protocol):
    """A step that was handed to a processor and may still be running there."""

    def result(self) -> Outputs:
        """Wait for the step and return what was asked for; every call returns the same.

        Raises:
            NotFiniteError: a logit of the rows that were computed for the result is NaN or infinite.
        """


class Model(Protocol):
    """A decoder whose KV cache of ``context`` rows is written in place.

    A step at a smaller ``pos`` than the last one rolls the cache back: rows from ``pos`` on are overwritten and rows
    after the written ones are not read. Any number of ids >= 1 is allowed, and a row of the result does not depend,
    bit for bit, on how many rows are computed with it.
    """

    vocab: int
    context: int
    name: str

    @property
    def copied_s(self) -> float:
        """Seconds that copies between processors took in all steps so far."""
        return 0.0

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Pending:
        """Start a step that writes KV rows ``pos .. pos+n-1``, without waiting for it where its processor allows that.

        Steps of one model run in the order in which they were submitted.

        Args:
            ids: the n tokens.
            pos: rows of the cache before them.
            outputs: any of :data:`LOGITS`, float32 ``[n, vocab]``, and :data:`CHOICE`, the best id of each row, int64
                ``[n]``; ties go to the lowest id. With none the rows of the cache are all that is wanted.
            last: only the last row is wanted, so that the head is computed for few rows; the results have one row.

        Raises:
            ContextFull: ``pos + n > context``.
        """

    def held(self, ids: Sequence[int]) -> int:
        """How many of the first ``ids`` the cache holds already; a model that does not remember them holds none."""
        return 0

    def rows_layout(self, count: int) -> list[tuple[str, tuple[int, ...]]]:
        """Type and shape of what `read_rows` returns; a model whose rows cannot be had has none."""
        return []

    def read_rows(self, count: int) -> list[npt.NDArray[Any]]:
        """Copies of the first rows of each cache, ``[kv_heads, ...]``, after all steps; more may stand after them."""
        return []

    def write_rows(self, ids: Sequence[int], rows: Sequence[npt.NDArray[Any]]) -> None:
        """Put rows that `read_rows` returned for the tokens ``ids`` into the caches."""
        return None

    def forward(self, ids: Sequence[int], pos: int) -> npt.NDArray[np.float32]:
        """Submit, wait, and return the logits of every row."""
        logits: npt.NDArray[np.float32] = self.submit(ids, pos, (LOGITS,)).result()[LOGITS]
        return logits

    def argmax(self, ids: Sequence[int], pos: int) -> npt.NDArray[np.int64]:
        """Submit, wait, and return the best id of every row."""
        choice: npt.NDArray[np.int64] = self.submit(ids, pos).result()[CHOICE]
        return choice

    def extend(self, ids: Sequence[int], pos: int) -> int:
        """Submit, wait, and return the best id after the last row."""
        return int(self.submit(ids, pos, last=True).result()[CHOICE][0])


@dataclass(frozen=True)
class Row:
    """A token of one of several sequences: it is at a position of a slot."""

    slot: int
    pos: int
    token: int


class SlotCache(Protocol):
    """The KV rows of slots, whose memory is in blocks: a block of a slot is as many rows, and any block can be there.

    Attributes:
        slots, context: of the model.
        block_rows: rows of a block; where it is the context, blocks cannot be mapped.
        blocks: numbers of blocks, from 0; at first slot s has those from s * `blocks_of_slot` on, in order.
    """

    slots: int
    context: int
    block_rows: int
    blocks: int

    @property
    def blocks_of_slot(self) -> int:
        """Blocks that a slot has."""
        return self.context // self.block_rows

    def map(self, slot: int, first: int, blocks: Sequence[int]) -> None:
        """Put blocks into a slot, from its block ``first`` on; what was there keeps its rows.

        Raises:
            BaseException: the system does not allow it; the rows of all slots are lost.
        """

    def read(self, slot: int, begin: int, end: int) -> list[npt.NDArray[Any]]:
        """Copies of a slot's rows, of each cache ``[kv_heads, ...]``; there may be more before and after them."""

    def write(self, slot: int, begin: int, rows: Sequence[npt.NDArray[Any]]) -> None:
        """Put rows that `read` returned with the same ``begin`` into a slot."""

    def copy(self, source: int, slot: int, begin: int, end: int) -> None:
        """Put a slot's rows into another one."""
        self.write(slot, begin, self.read(source, begin, end))


class Slots(Protocol):
    """A decoder whose KV cache has slots, each of ``context`` rows, for sequences that go on side by side.

    Attributes:
        cache: its rows; None where they cannot be had.
        row_widths: rows of the calls that :meth:`rows` makes, ascending from 1; more rows take several calls.
        read_widths: tokens of the calls that feed a prompt to a slot, ascending.
        prefill_widths: those of them that are chunks.
    """

    vocab: int
    context: int
    slots: int
    row_widths: Sequence[int]
    read_widths: Sequence[int]
    prefill_widths: Sequence[int]
    name: str
    cache: SlotCache | None = None

    def slot(self, slot: int) -> Model:
        """One of them, as a model of its own."""

    def rows(self, rows: Sequence[Row]) -> Outputs:
        """Feed rows of any sequences in one step, and wait.

        Rows of one sequence stand in its order. A row has the bits that its slot alone gives it.

        Returns:
            :data:`LOGITS`, float32 ``[n, vocab]``, and :data:`CHOICE`, int64 ``[n]``, below 0 where a logit of the row
            is NaN or infinite.

        Raises:
            ContextFull: a row is beyond the context.
        """


@dataclass(frozen=True)
class Done:
    """A step that has ended, with its logits, float32 ``[n, vocab]``; implements the Pending protocol."""

    logits: npt.NDArray[np.float32]

    def result(self) -> Outputs:
        """The logits and the choices of :meth:`Model.submit`."""
        return {LOGITS: self.logits, CHOICE: self.logits.argmax(-1).astype(np.int64)}


@dataclass(frozen=True)
class Models:
    """The models of a bundle; ``draft`` is None where the bundle carries none."""

    target: Model
    draft: Model | None = None
