"""Several answers at a time, each in a slot of the target: an Engine whose thread is the caller's of :meth:`run`.

Requests join and leave between rounds. A round reads as much of the prompts as the time between tokens allows
(scheduler.py), in order of arrival, and then feeds a row of every text that is generated, and rows of drafts where that
is faster. A text's tokens are those that it would have alone, whatever is drafted and whatever runs beside it. What
others have read of a prompt is not read again; so the answers to one request, each in a slot of its own, read it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from hetero_sd.runtime.model.kept_prefix import KeptPrefix
from hetero_sd.runtime.model.protocol import Slots
from hetero_sd.runtime.model.shared_rows import SharedRows
from hetero_sd.runtime.model.slot_pool import SlotPool
from hetero_sd.runtime.serve.at_work import Asked, AtWork
from hetero_sd.runtime.serve.batch_round import BatchRound
from hetero_sd.runtime.serve.branches import Branches
from hetero_sd.runtime.serve.counts import Snapshot, TokenCounts
from hetero_sd.runtime.serve.engine import ChoiceEnded, Ended, Event, GenerationRequest, Started, TextPiece
from hetero_sd.runtime.serve.jobs import ENDS, EngineJob, Jobs, encode, failure_of, took_too_long
from hetero_sd.runtime.serve.model_drafts import BatchDrafter
from hetero_sd.runtime.serve.round_drafts import RoundDrafts
from hetero_sd.runtime.serve.running_text import RunningText
from hetero_sd.runtime.serve.scheduler import Scheduler
from hetero_sd.runtime.serve.text_drafts import EXPECTED, WEIGHT
from hetero_sd.runtime.session import Session


class BatchEngine:
    """Implements the Engine protocol."""

    def __init__(
        self,
        session: Session,
        slots: Slots,
        most_waiting: int,
        answer_s: float,
        keep_rows: int = 0,
        between_tokens_s: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        drafts: bool = False,
        drafter: Slots | None = None,
    ) -> None:
        """Begin with an empty queue.

        Args:
            session: encodes prompts, and has what requests leave out; nothing else uses its models.
            slots: of its target.
            most_waiting: requests that wait while all slots are taken.
            answer_s: after which a request is ended, counted from its turn.
            keep_rows: for beginnings of texts that have no slot any more, beside what sharing saves.
            between_tokens_s: that a running text waits at most between its tokens; None is BOUND_STEPS steps of one
                text alone (costmodel/batch.py).
            clock: gives seconds, for the times of rounds.
            drafts: tokens are drafted from what each slot has read and written, where that is faster.
            drafter: slots of the draft model, at least as many, for drafts of it where these are faster.
        """
        self._session, self._slots, self._answer_s = session, slots, answer_s
        predicted = None if session.plan is None else session.plan.prediction.slot_calls
        self._scheduler, self._clock = Scheduler(slots, predicted, between_tokens_s, clock), clock
        self._pool = SlotPool(slots, keep_rows)
        if isinstance(session.models.target, KeptPrefix):
            self._pool.every[0].tokens = session.models.target.hand_over()
        by_model = None if drafter is None else self._drafter(drafter)
        branches = Branches(self._pool, self._scheduler.counts, clock)
        self._drafts = RoundDrafts(self._scheduler, branches, drafts, by_model)
        self._jobs = Jobs(most_waiting, slots.slots)
        self._work: list[AtWork] = []  # in order of arrival
        self._more: Asked | None = None  # the request some choices of which have no slot yet
        told = self._work, self._take, self._leave
        self._round = BatchRound(slots.name, self._pool, self._scheduler, self._drafts, *told)

    def _drafter(self, slots: Slots) -> BatchDrafter:
        """The draft model, with what the plan expects of it."""
        plan = self._session.plan
        live = None if plan is None else plan.prediction.live
        expected = (EXPECTED, WEIGHT) if live is None else (live.alpha, live.alpha_tokens)
        calls = None if plan is None else plan.prediction.draft_slot_calls
        among = isinstance(self._session.models.draft, SharedRows)
        return BatchDrafter(slots, calls, expected, self._scheduler.counts, self._clock, among)

    def submit(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> EngineJob:
        """See :meth:`hetero_sd.runtime.serve.engine.Engine.submit`."""
        return self._jobs.submit(request, deliver)

    def snapshot(self) -> Snapshot:
        """See :meth:`hetero_sd.runtime.serve.engine.Engine.snapshot`; the rows are those of all slots."""
        rows = self._slots.slots * self._slots.context
        return replace(self._jobs.snapshot(rows, self._pool.kept_rows), batch=replace(self._scheduler.counts))

    def stop(self) -> None:
        """Make :meth:`run` return soon; what runs is ended. For signal handlers, too: it takes no lock."""
        self._jobs.stop()

    def run(self) -> None:
        """Answer requests until :meth:`stop`; those that run or wait then are told."""
        try:
            while not self._jobs.stopping:
                if not self._work and self._more is None:
                    self._jobs.wait()
                with self._scheduler.round():
                    self._end_what_nobody_waits_for()
                    self._admit()
                    self._round.run()
        finally:
            for asked in self._asked():
                self._leave(asked, ENDS)
            self._jobs.close()

    def _asked(self) -> list[Asked]:
        """The requests at work."""
        found = [*dict.fromkeys(work.asked for work in self._work)]
        return found if self._more is None or self._more in found else [*found, self._more]

    def _end_what_nobody_waits_for(self) -> None:
        now_s = time.monotonic()
        for asked in self._asked():
            if asked.job.cancelled:
                self._leave(asked, ENDS)
            elif now_s > asked.deadline_s:
                self._leave(asked, took_too_long(self._answer_s))

    def _admit(self) -> None:
        """Begin requests, each choice in a slot, while there are free ones."""
        while self._may_begin() and (asked := self._more or self._next()) is not None:
            try:
                text = self._begin(asked)
            except Exception as error:
                self._leave(asked, failure_of(error))
                continue
            if not asked.begun:
                asked.job.deliver(Started(len(asked.ids)))
            self._work.append(text)
            asked.begun += 1
            self._more = asked if asked.begun < asked.job.request.choices else None

    def _may_begin(self) -> bool:
        return self._pool.free > 0 and self._scheduler.admits(len(self._work))

    def _next(self) -> Asked | None:
        """The request whose turn it is; None where none waits."""
        while (job := self._jobs.take()) is not None:
            try:
                ids = encode(self._session, job.request.prompt)
            except Exception as error:
                self._jobs.end(job, failure_of(error))
            else:
                return Asked(job, ids, time.monotonic() + self._answer_s)
        return None

    def _begin(self, asked: Asked) -> AtWork:
        slot = self._pool.take(asked.ids)
        sources = self._drafts.begin(slot, asked.ids)
        try:
            text = RunningText(self._session, slot, asked.ids, asked.job.request, asked.begun, sources.every)
        except Exception:
            self._drafts.end(sources)
            self._pool.give_back(slot)
            raise
        self._jobs.tally.begin(text)
        read = [(work, self._pool.worth_waiting_for(asked.ids, work.asked.ids)) for work in self._work]
        return AtWork(asked, slot, asked.begun, text, sources, [(work, rows) for work, rows in read if rows])

    def _take(self, work: AtWork, tokens: Sequence[int]) -> None:
        """Deliver what tokens complete, and end the choice where one is the last."""
        if not tokens:
            return
        text, asked, now_s = work.text, work.asked, self._clock()
        if text.told_s is not None:
            self._scheduler.counts.gap(now_s - text.told_s)
        text.told_s = now_s
        before = len(text.trace.token_ids)
        for piece in text.take(tokens):
            shown = () if text.shown is None else text.shown.of(piece)
            if piece.text:
                asked.job.deliver(TextPiece(work.choice, piece.text, shown))
        self._scheduler.counts.tokens += len(text.trace.token_ids) - before
        if text.stop_reason is None:
            return
        asked.job.deliver(ChoiceEnded(work.choice, text.stop_reason, self._free(work), text.trace.known_logprobs))
        asked.ended += 1
        if asked.ended == asked.job.request.choices:
            self._leave(asked, Ended())

    def _free(self, work: AtWork) -> TokenCounts:
        """Give the slot of a choice back; what it counted."""
        self._work.remove(work)
        self._drafts.end(work.sources)
        self._pool.give_back(work.slot)
        return self._jobs.tally.end(work.text)

    def _leave(self, asked: Asked, last: Event) -> None:
        """Give the slots of a request back, and say how it ended."""
        for work in [work for work in self._work if work.asked is asked]:
            self._free(work)
        if self._more is asked:
            self._more = None
        self._jobs.end(asked.job, last)


def slots_at_a_time(session: Session) -> Slots | None:
    """The slots in which requests are answered at a time; None for one at a time: drafts are made for one alone."""
    return session.slots if session.policy is None and session.overlap is None else None
