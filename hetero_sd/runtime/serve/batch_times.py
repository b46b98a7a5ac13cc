"""The times of a batch's calls as they are now: those of the plan, corrected by the ones that were seen.

What is learnt is by how much a width is off, so that it holds for caches of any length; a width that was not seen is
off by as much as the others of its kind. Without a plan a call of rows is expected to take as long as any other until
it was seen, and one that reads likewise: so wider ones are tried.
"""

from __future__ import annotations

from statistics import median

from costmodel.batch_calls import CallTimes
from costmodel.schema.batch import BatchPrediction
from hetero_sd.runtime.decode.seen import Seen
from hetero_sd.runtime.model.protocol import Slots

_ROWS, _READ = "rows", "read"


def calls_of(slots: Slots, predicted: BatchPrediction | None) -> BatchPrediction:
    """What is predicted for the calls of a model; one that was predicted for other calls is no prediction."""
    rows, reads, chunks = tuple(slots.row_widths), tuple(slots.read_widths), tuple(slots.prefill_widths)
    calls = rows, reads, chunks
    if predicted is not None and (tuple(predicted.row_calls), tuple(predicted.read_calls), predicted.chunks) == calls:
        return predicted
    return BatchPrediction({n: (1.0, 0.0) for n in rows}, {n: (1.0, 0.0) for n in reads}, chunks=chunks)


class BatchTimes(CallTimes):
    """What calls take, as seen."""

    def __init__(self, predicted: BatchPrediction) -> None:
        """Nothing was seen."""
        super().__init__(predicted)
        self._seen: dict[tuple[str, int], Seen] = {}
        self._off: dict[tuple[str, int], float] = {}  # seen over predicted
        self._of_others: dict[str, float] = {}  # by kind

    def rows_off(self, width: int) -> float:
        """See :meth:`costmodel.batch_calls.CallTimes.rows_off`."""
        return self._believed(_ROWS, width)

    def read_off(self, width: int) -> float:
        """See :meth:`costmodel.batch_calls.CallTimes.read_off`."""
        return self._believed(_READ, width)

    def observe_rows(self, rows: int, past: float, seconds: float) -> float:
        """Learn from a call, of rows with so many tokens before them on average; what was predicted for it."""
        width = self.predicted.row_width(rows)
        return self._observe((_ROWS, width), seconds, self.predicted.row_call_s(width, past))

    def observe_read(self, tokens: int, past: int, seconds: float) -> float:
        """Learn from a call that read a piece of a prompt; what was predicted for it."""
        width = self.predicted.read_width(tokens)
        return self._observe((_READ, width), seconds, self.predicted.read_call_s(width, past))

    def _believed(self, kind: str, width: int) -> float:
        off = self._off.get((kind, width))
        if off is not None:
            return off
        return self._of_others.get(kind) or next(iter(self._of_others.values()), 1.0)

    def _observe(self, call: tuple[str, int], seconds: float, predicted_s: float) -> float:
        seen = self._seen.setdefault(call, Seen())
        seen.append(seconds / predicted_s)
        self._off[call] = seen.median
        kind, _ = call
        self._of_others[kind] = median([off for (of, _), off in self._off.items() if of == kind])
        return predicted_s
