"""What each round of a batch does, by the cost model's rules (costmodel/batch.py) and the times of the calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from costmodel.batch import BOUND_STEPS, Reading, Unread, admits, plan_reading
from costmodel.batch_drafts import Offer, drafts_may_pay, share_rows
from costmodel.schema.batch import BatchPrediction
from hetero_sd.runtime.decode.seen import Seen
from hetero_sd.runtime.model.protocol import Outputs, Row, Slots
from hetero_sd.runtime.serve.batch_counts import BatchCounts
from hetero_sd.runtime.serve.batch_times import BatchTimes, calls_of
from hetero_sd.runtime.serve.text_drafts import MOST_DRAFTED

_SETTLED_ROUNDS = 32  # after which it is asked anew whether drafts could pay


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
        self._other, self._calls_before_s = Seen(), 0.0
        self._may_pay: dict[tuple[int, int], tuple[int, bool]] = {}  # rows, texts -> in which round, and the answer

    @property
    def bound_s(self) -> float:
        """That a running text waits at most between two of its tokens."""
        return self._given_s if self._given_s is not None else BOUND_STEPS * self._times.rows_s(1)

    @property
    def _other_s(self) -> float:
        """What a round takes beside its calls."""
        return self._other.median if self._other else 0.0

    @contextmanager
    def round(self) -> Iterator[None]:
        """Account for the time of a round."""
        counts, begin = self.counts, self._clock()
        self._calls_before_s, calls = counts.calls_s, counts.rows + counts.read_tokens
        try:
            yield
        finally:
            took = self._clock() - begin
            counts.busy_s += took
            if counts.rows + counts.read_tokens > calls:
                counts.rounds += 1
                counts.predicted_s += self._round_s
                self._other.append(took - (counts.calls_s - self._calls_before_s))

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
            return plan_reading(prompts, len(pasts), self.counts.bound_s - self._other_s, self._times)

    def may_draft(self, rows: int, running: int) -> bool:
        """Whether drafts could make a round faster that has so many rows without them."""
        asked, pays = self._may_pay.get((rows, running), (-_SETTLED_ROUNDS, False))
        if self.counts.rounds - asked >= _SETTLED_ROUNDS:
            with self._deciding():
                pays = drafts_may_pay(rows, running, self._other_s, MOST_DRAFTED, self._times)
            self._may_pay[rows, running] = self.counts.rounds, pays
        return pays

    def drafted(self, offers: Sequence[Offer], rows: int) -> list[int]:
        """Drafts of each running text that are verified in this round."""
        with self._deciding():
            other_s = self.counts.calls_s - self._calls_before_s + self._other_s
            return share_rows(offers, rows, len(offers), other_s, self.bound_s, self._times)

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
