"""The times of a batch's calls as they are now: those of the plan, corrected by the ones that were seen.

What is learnt is by how much a width is off, so that it holds for caches of any length; a width that was not seen is
off by as much as the others. Without a plan every call is expected to take as long as any other, until it was seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from costmodel.schema.batch import BatchPrediction
from hetero_sd.runtime.decode.seen import Seen
from hetero_sd.runtime.model.protocol import Slots

ROWS, READ = "rows", "read"


def calls_of(slots: Slots, predicted: BatchPrediction | None) -> BatchPrediction:
    """What is predicted for the calls of a model; one that was predicted for other calls is no prediction."""
    rows, reads = tuple(slots.row_widths), tuple(slots.read_widths)
    if predicted is not None and (tuple(predicted.row_calls), tuple(predicted.read_calls)) == (rows, reads):
        return predicted
    return BatchPrediction({n: (1.0, 0.0) for n in rows}, {n: (1.0, 0.0) for n in reads})


class BatchTimes:
    """Implements the StepTimes protocol of costmodel/batch.py.

    Attributes:
        past: tokens before a row, the mean of the running texts; set before every round.
    """

    def __init__(self, predicted: BatchPrediction) -> None:
        """Nothing was seen."""
        self._predicted = predicted
        self.chunk, self.most_rows, self.past = predicted.chunk, predicted.most_rows, 0.0
        self._seen: dict[tuple[str, int], Seen] = {}
        self._off: dict[tuple[str, int], float] = {}  # seen over predicted
        self._of_others = 1.0

    def parts(self, rows: int) -> Sequence[int]:
        """Rows of each call, of so many."""
        whole, rest = divmod(rows, self.most_rows)
        return [self.most_rows] * whole + ([rest] if rest else [])

    def width(self, rows: int) -> int:
        """Rows of the call that is made for so many."""
        return self._predicted.row_width(rows)

    def rows_s(self, rows: int) -> float:
        """See :meth:`costmodel.batch.StepTimes.rows_s`."""
        whole, rest = divmod(rows, self.most_rows)
        return whole * self._rows_call_s(self.most_rows) + (self._rows_call_s(rest) if rest else 0.0)

    def read_s(self, tokens: int, past: int) -> float:
        """See :meth:`costmodel.batch.StepTimes.read_s`."""
        width = self._predicted.read_width(tokens)
        return self._predicted.read_call_s(width, past) * self._off.get((READ, width), self._of_others)

    def observe_rows(self, rows: int, past: float, seconds: float) -> float:
        """Learn from a call, of rows with so many tokens before them on average; what was predicted for it."""
        width = self._predicted.row_width(rows)
        return self._observe((ROWS, width), seconds, self._predicted.row_call_s(width, past))

    def observe_read(self, tokens: int, past: int, seconds: float) -> float:
        """Learn from a call that read a piece of a prompt; what was predicted for it."""
        width = self._predicted.read_width(tokens)
        return self._observe((READ, width), seconds, self._predicted.read_call_s(width, past))

    def _rows_call_s(self, rows: int) -> float:
        width = self._predicted.row_width(rows)
        return self._predicted.row_call_s(width, self.past) * self._off.get((ROWS, width), self._of_others)

    def _observe(self, call: tuple[str, int], seconds: float, predicted_s: float) -> float:
        seen = self._seen.setdefault(call, Seen())
        seen.append(seconds / predicted_s)
        new = call not in self._off
        self._off[call] = seen.median
        if new or call == min(self._off):
            self._of_others = median(self._off.values())
        return predicted_s
