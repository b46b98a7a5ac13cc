"""What each round of a batch does, by the cost model's rules (costmodel/batch.py) and the times of the calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from costmodel.batch import BOUND_STEPS, Reading, Unread, admits, plan_reading
from costmodel.batch_drafts import (
    MOST_DRAFTED,
    ChosenDrafts,
    choose_drafts,
    drafts_may_pay,
)
from costmodel.draft_rows import BranchRounds, Offer, RoundSoFar, share_rows
from costmodel.schema.batch import BatchPrediction
from hetero_sd.runtime.decode.seen import Seen
from hetero_sd.runtime.model.protocol import Outputs, Row, Slots
from hetero_sd.runtime.serve.batch_counts import BatchCounts
from hetero_sd.runtime.serve.batch_times import BatchTimes, calls_of
from hetero_sd.runtime.serve.model_drafts import BatchDrafter

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
        # rows, texts, whether a model drafts -> in which round it was asked, and the answer
        self._may_pay: dict[tuple[int, int, bool], tuple[int, bool]] = {}
        self._branch_rounds = BranchRounds()

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
        drafts_before_s = counts.drafting_s + counts.branching_s
        try:
            yield
        finally:
            took = self._clock() - begin
            counts.busy_s += took
            if counts.rows + counts.read_tokens > calls:
                counts.rounds += 1
                counts.predicted_s += self._round_s
                drafts_s = counts.drafting_s + counts.branching_s - drafts_before_s
                self._other.append(took - drafts_s - (counts.calls_s - self._calls_before_s))

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

    def may_draft(self, rows: int, running: int, from_texts: bool, drafter: BatchDrafter | None) -> bool:
        """Whether drafts could make a round faster that has so many rows without them.

        Args:
            rows: of it.
            running: texts.
            from_texts: there are drafts that take no time.
            drafter: makes others.
        """
        if from_texts or drafter is None:
            return from_texts and self._pays(rows, running, None)
        return self._pays(rows, running, drafter)

    def _pays(self, rows: int, running: int, drafter: BatchDrafter | None) -> bool:
        key = rows, running, drafter is not None
        asked, pays = self._may_pay.get(key, (-_SETTLED_ROUNDS, False))
        if self.counts.rounds - asked >= _SETTLED_ROUNDS:
            with self._deciding():
                times = None if drafter is None else drafter.times
                pays = drafts_may_pay(rows, running, self._other_s, MOST_DRAFTED, self._times, times)
            self._may_pay[key] = self.counts.rounds, pays
        return pays

    def drafted(
        self,
        found: Sequence[Offer],
        modelled: Sequence[Offer],
        left: int,
        rows: int,
        drafter: BatchDrafter | None,
        free_slots: int,
        branch_s: Sequence[float],
    ) -> ChosenDrafts:
        """Drafts of each running text that are verified in this round.

        Args:
            found: those that take no time.
            modelled: those of a draft model.
            left: tokens that the texts are still to get.
            rows: of the round without drafts.
            drafter: the draft model, if there is one.
            free_slots: for branches.
            branch_s: that one of each text takes; see RoundSoFar.
        """
        with self._deciding():
            read_s = self.counts.calls_s - self._calls_before_s
            free_slots = self._branch_rounds.free_slots(free_slots)
            so_far = RoundSoFar(rows, len(found), self._other_s, self.bound_s - read_s, free_slots, branch_s)
            if drafter is not None and self._pays(rows, len(found), drafter):
                chosen = choose_drafts(found, modelled, left, so_far, self._times, drafter.times)
            else:
                shared = share_rows(found, so_far, self._times)
                chosen = ChosenDrafts(shared.gammas, [False] * len(found), branches=shared.branches)
            self._branch_rounds.note(chosen.branches)
            return chosen

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
