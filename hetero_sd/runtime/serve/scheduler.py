"""What each round of a batch does, by the cost model's rules (costmodel/batch.py) and the times of the calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from costmodel.batch import BOUND_STEPS, Reading, Unread, admits, plan_reading
from costmodel.schema.batch import BatchPrediction
from hetero_sd.runtime.decode.seen import Seen
from hetero_sd.runtime.model.protocol import Outputs, Row, Slots
from hetero_sd.runtime.serve.batch_counts import BatchCounts
from hetero_sd.runtime.serve.batch_times import BatchTimes, calls_of


class Scheduler:
    """Decides, calls the target, and learns how long its calls take.

    Attributes:
        counts: what the rounds did.
    """

    def __init__(
        self,
        slots: Slots,
        predicted: BatchPrediction | None,
        between_tokens_s: float | None,
        clock: Callable[[], float],
    ) -> None:
        """Begin with what was predicted.

        Args:
            slots: of the target.
            predicted: its calls, by the plan.
            between_tokens_s: that a running text waits at most; None is BOUND_STEPS steps of one text alone.
            clock: gives seconds.
        """
        self._slots, self._clock, self._given_s = slots, clock, between_tokens_s
        calls = calls_of(slots, predicted)
        self._predicts, self._round_s = calls is predicted, calls.round_s
        self._times, self.counts = BatchTimes(calls), BatchCounts()
        self._other = Seen()

    @property
    def bound_s(self) -> float:
        """That a running text waits at most between two of its tokens."""
        return self._given_s if self._given_s is not None else BOUND_STEPS * self._times.rows_s(1)

    @contextmanager
    def round(self) -> Iterator[None]:
        """Account for the time of a round."""
        counts, begin = self.counts, self._clock()
        before, calls = counts.calls_s, counts.rows + counts.read_tokens
        try:
            yield
        finally:
            took = self._clock() - begin
            counts.busy_s += took
            if counts.rows + counts.read_tokens > calls:
                counts.rounds += 1
                counts.predicted_s += self._round_s
                self._other.append(took - (counts.calls_s - before))

    @contextmanager
    def _deciding(self) -> Iterator[None]:
        begin = self._clock()
        try:
            yield
        finally:
            self.counts.scheduling_s += self._clock() - begin

    def admits(self, at_work: int) -> bool:
        """Whether another request may begin beside those at work."""
        return admits(at_work, self.bound_s, self._times)

    def reading(self, prompts: Sequence[Unread], pasts: Sequence[int]) -> Reading:
        """What is read of prompts, beside running texts with so many tokens before them."""
        with self._deciding():
            self._times.past = sum(pasts) / len(pasts) if pasts else 0.0
            self.counts.bound_s = self.bound_s
            other = self._other.median if self._other else 0.0
            return plan_reading(prompts, len(pasts), self.counts.bound_s - other, self._times)

    def read(self, feed: Callable[[int], list[int]], tokens: int, past: int) -> list[int]:
        """Feed a piece of a prompt with so many tokens before it; the token that follows, if any."""
        begin = self._clock()
        found = feed(tokens)
        took = self._clock() - begin
        predicted = self._times.observe_read(tokens, past, took)
        self._count(took, predicted)
        self.counts.read_tokens += tokens
        return found

    def rows(self, rows: Sequence[Row]) -> Iterator[Outputs]:
        """Feed rows of several texts; what each call gives."""
        done = 0
        for part in self._times.parts(len(rows)):
            fed = rows[done : done + part]
            past = sum(row.pos for row in fed) / part
            begin = self._clock()
            made = self._slots.rows(fed)
            took = self._clock() - begin
            self._count(took, self._times.observe_rows(part, past, took))
            self.counts.rows += part
            self.counts.computed_rows += self._times.predicted.row_width(part)
            done += part
            yield made

    def _count(self, took: float, predicted: float) -> None:
        self.counts.calls_s += took
        self.counts.predicted_s += predicted if self._predicts else 0.0
