"""The slots of a compiled model: each is a model of one sequence, and a call has rows of several of them.

A row's bits do not depend on the other rows of its call: rows_<n> of passes/relax/make_entries.py gives it what step_1
of its slot does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Model, Outputs, Pending, Row
from hetero_sd.runtime.model.segments import Chain
from hetero_sd.runtime.model.steps import shared_numbers


class SlotModel(Model):
    """One slot of a model; implements the Model protocol."""

    def __init__(self, model: Any, slot: int) -> None:
        """Of a CompiledModel."""
        self._model, self._slot = model, slot
        self.vocab, self.context, self.name = model.vocab, model.context, model.name

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Pending:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.submit`."""
        pending: Pending = self._model.submit(ids, pos, outputs, last, slot=self._slot)
        return pending


class RowSteps:
    """Calls of the entry points rows_<n>."""

    def __init__(self, widths: Sequence[int]) -> None:
        """Make the inputs of every entry point of `widths`, ascending."""
        self._widths = widths
        self._inputs = {n: (shared_numbers(1, n), shared_numbers(n), shared_numbers(n)) for n in widths}
        self._one = shared_numbers(1, 1)

    def run(self, chain: Chain, rows: Sequence[Row]) -> Outputs:
        """The logits and the choice of each row; a choice below 0 says that a logit of the row is not finite."""
        parts = [self._call(chain, part) for part in self._parts(rows)]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in (LOGITS, CHOICE)}

    def _parts(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        most = self._widths[-1]
        return (rows[begin : begin + most] for begin in range(0, len(rows), most))

    def _call(self, chain: Chain, rows: Sequence[Row]) -> Outputs:
        """At most as many rows as the widest entry point has."""
        if len(rows) == 1:
            numbers, ids = self._one
            numbers[0] = rows[0].token
            made = chain.run("step_1", ids, rows[0].pos, slot=rows[0].slot)
        else:
            n = next(width for width in self._widths if width >= len(rows))
            padded = [*rows, *[rows[-1]] * (n - len(rows))]  # the same row again: it writes what it wrote
            inputs = self._inputs[n]
            for (numbers, _), values in zip(inputs, _columns(padded), strict=True):
                numbers[:] = values
            (_, ids), (slots, _), (positions, _) = inputs
            made = chain.run_rows(f"rows_{n}", ids, slots, positions)
        logits, choice = (chain.host(tensor)[0][: len(rows)] for tensor in made)
        return {LOGITS: logits, CHOICE: choice}


def _columns(rows: Sequence[Row]) -> tuple[list[int], list[int], list[int]]:
    return [row.token for row in rows], [row.slot for row in rows], [row.pos for row in rows]
