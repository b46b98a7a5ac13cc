"""The calls of a target with slots: which there are, what the cost model says of them, and rounds made of them."""

from __future__ import annotations

from collections.abc import Sequence

from costmodel.decoder import DecoderSpec
from costmodel.model_costs import ModelCosts
from costmodel.placement import Placement
from costmodel.roofline import Roofline
from costmodel.schema.batch import BatchPrediction, Seconds
from costmodel.work import step_units

_ROWS, _MOST_ROWS = (2, 4), 8  # in between, a call has rows to spare


def row_widths(slots: int) -> tuple[int, ...]:
    """Widths of the entry points whose rows are of several sequences; more rows take several calls."""
    most = min(slots, _MOST_ROWS)
    return tuple(sorted({most, *(n for n in _ROWS if n < most)})) if slots > 1 else ()


def predicted_calls(
    roofline: Roofline,
    spec: DecoderSpec,
    placement: Placement,
    slots: int,
    steps: Sequence[int],
    chunks: Sequence[int],
    context: int,
    reading: Placement | None = None,
) -> BatchPrediction:
    """The calls of a target; time grows evenly with the tokens before the rows.

    Args:
        roofline: prices them.
        spec: the target.
        placement: where it runs.
        slots: sequences of its caches.
        steps: widths of its entry points for one sequence.
        chunks: tokens that a prompt is read in.
        context: rows of the caches.
        reading: where it reads chunks, if with other threads.
    """

    def rows_s(width: int, past: int) -> float:
        rows = {width: step_units(spec, 1, past, width)}
        return ModelCosts(roofline, spec, past, rows).step(placement, width).total_s

    def read_s(width: int, past: int) -> float:
        costs = ModelCosts(roofline, spec, past)
        return costs.prompt_chunk_s(reading or placement, width) if width in chunks else costs.step_s(placement, width)

    def line(start: float, end: float, tokens: int) -> Seconds:
        return start, max(0.0, end - start) / tokens

    return BatchPrediction(
        {n: line(rows_s(n, 0), rows_s(n, context), n * context) for n in (1, *row_widths(slots))},
        {n: line(read_s(n, 0), read_s(n, context), context) for n in sorted({*steps, *chunks})},
        roofline.round_overhead_s(),
        tuple(chunks),
    )


class CallTimes:
    """What calls take, as predicted; implements the StepTimes protocol of batch.py.

    Attributes:
        past: tokens before a row, the mean of the running texts; set before every round.
    """

    def __init__(self, predicted: BatchPrediction) -> None:
        """Of a target's calls."""
        self.predicted = predicted
        self.chunks: Sequence[int] = predicted.chunks
        self.past = 0.0
        self._most_rows = predicted.most_rows

    def parts(self, rows: int) -> list[int]:
        """Rows of each call, of so many."""
        whole, rest = divmod(rows, self._most_rows)
        return [self._most_rows] * whole + ([rest] if rest else [])

    def rows_s(self, rows: int) -> float:
        """See :meth:`costmodel.batch.StepTimes.rows_s`."""
        whole, rest = divmod(rows, self._most_rows)
        return whole * self._rows_call_s(self._most_rows) + (self._rows_call_s(rest) if rest else 0.0)

    def read_s(self, tokens: int, past: int) -> float:
        """See :meth:`costmodel.batch.StepTimes.read_s`."""
        width = self.predicted.read_width(tokens)
        return self.predicted.read_call_s(width, past) * self.read_off(width)

    def _rows_call_s(self, rows: int) -> float:
        width = self.predicted.row_width(rows)
        return self.predicted.row_call_s(width, self.past) * self.rows_off(width)

    def rows_off(self, width: int) -> float:
        """What such a call takes over what was predicted."""
        return 1.0

    def read_off(self, width: int) -> float:
        """What such a call takes over what was predicted."""
        return 1.0
