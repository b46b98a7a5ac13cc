"""Several answers at a time, each in a slot of the target: an Engine whose thread is the caller's of :meth:`run`.

Requests join and leave between rounds. A round reads as much of the prompts as the time between tokens allows
(scheduler.py), in order of arrival, and then feeds a row of every text that is generated, and rows of drafts where that
is faster. A text's tokens are those that it would have alone, whatever is drafted and whatever runs beside it. What
others have read of a prompt is not read again; so the answers to one request, each in a slot of its own, read it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from costmodel.batch import Unread
from hetero_sd.runtime.decode.drafters.ngram_pool import NgramPool
from hetero_sd.runtime.model.kept_prefix import KeptPrefix
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Row, Slots
from hetero_sd.runtime.model.slot_pool import Slot, SlotPool
from hetero_sd.runtime.serve.counts import Snapshot, TokenCounts
from hetero_sd.runtime.serve.engine import ChoiceEnded, Ended, Event, GenerationRequest, Started, TextPiece
from hetero_sd.runtime.serve.jobs import ENDS, EngineJob, Jobs, encode, failure_of, took_too_long
from hetero_sd.runtime.serve.running_text import RunningText
from hetero_sd.runtime.serve.scheduler import Scheduler
from hetero_sd.runtime.serve.text_drafts import POOL_TOKENS, TextDrafts
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
        """
        self._session, self._slots, self._answer_s = session, slots, answer_s
        predicted = None if session.plan is None else session.plan.prediction.slot_calls
        self._scheduler, self._clock = Scheduler(slots, predicted, between_tokens_s, clock), clock
        self._pool = SlotPool(slots, keep_rows)
        if isinstance(session.models.target, KeptPrefix):
            self._pool.every[0].tokens = session.models.target.hand_over()
        self._drafts, self._pools = drafts, dict[int, NgramPool]()  # by slot
        self._jobs = Jobs(most_waiting, slots.slots)
        self._work: list[_AtWork] = []  # in order of arrival
        self._more: _Asked | None = None  # the request some choices of which have no slot yet

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
                    self._round()
        finally:
            for asked in self._asked():
                self._leave(asked, ENDS)
            self._jobs.close()

    def _asked(self) -> list[_Asked]:
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

    def _next(self) -> _Asked | None:
        """The request whose turn it is; None where none waits."""
        while (job := self._jobs.take()) is not None:
            try:
                ids = encode(self._session, job.request.prompt)
            except Exception as error:
                self._jobs.end(job, failure_of(error))
            else:
                return _Asked(job, ids, time.monotonic() + self._answer_s)
        return None

    def _begin(self, asked: _Asked) -> _AtWork:
        slot, drafts = self._pool.take(asked.ids), None
        if self._drafts:
            drafts = TextDrafts(self._pools.setdefault(slot.number, NgramPool(POOL_TOKENS)))
        try:
            text = RunningText(self._session, slot, asked.ids, asked.job.request, asked.begun, drafts)
        except Exception:
            self._pool.give_back(slot)
            raise
        self._jobs.tally.begin(text)
        read = [(work, self._pool.worth_waiting_for(asked.ids, work.asked.ids)) for work in self._work]
        return _AtWork(asked, slot, asked.begun, text, [(work, rows) for work, rows in read if rows])

    def _round(self) -> None:
        """Read of prompts what fits, then feed the rows of all texts that run."""
        prompts = [work for work in self._work if work.text.reading and not self._waits(work)]
        for work in prompts:
            work.text.trace.kept_tokens += self._pool.share(work.slot, work.asked.ids)
        prompts = [work for work in prompts if work.text.reading]
        running = [work.text.past for work in self._work if not work.text.reading]
        unread = [Unread(work.text.past, work.text.unread) for work in prompts]
        planned = self._scheduler.reading(unread, running)
        for i, tokens in planned.pieces:
            self._read(prompts[i], tokens)
        self._scheduler.counts.riding_tokens += sum(tokens for _, tokens in planned.riding)
        riding = {id(prompts[i]): tokens for i, tokens in planned.riding}
        batch = [work for work in self._work if not work.text.reading or id(work) in riding]
        if batch:
            drafts = self._draft([work for work in batch if not work.text.reading], sum(riding.values()))
            rows = [work.text.rows(riding.get(id(work), 1), drafts.get(id(work), ())) for work in batch]
            self._feed(batch, rows)

    def _waits(self, work: _AtWork) -> bool:
        """Whether a text that came before is reading rows that this one will take over."""
        past = work.text.past
        if any(past < rows and other in self._work and other.text.past < rows for other, rows in work.behind):
            return True
        work.behind.clear()
        return False

    def _draft(self, running: Sequence[_AtWork], riding: int) -> Mapping[int, Sequence[int]]:
        """What is verified of texts beside so many rows of prompts, by the id of the text."""
        if not self._drafts or not running or not self._scheduler.may_draft(len(running) + riding, len(running)):
            return {}
        offers = [work.text.offer() for work in running]
        if not any(offer.most for offer in offers):
            return {}
        gammas = self._scheduler.drafted(offers, len(running) + riding)
        return {id(work): work.text.draft(gamma) for work, gamma in zip(running, gammas, strict=True)}

    def _read(self, work: _AtWork, tokens: int) -> None:
        """A piece of a prompt, unless its request has ended in this round."""
        if work not in self._work:
            return
        try:
            past = work.text.past
            self._take(work, self._scheduler.read(work.text.read, tokens, past))
        except Exception as error:
            self._leave(work.asked, failure_of(error))

    def _feed(self, batch: Sequence[_AtWork], rows: Sequence[Sequence[Row]]) -> None:
        """The rows of some texts, and what follows from them."""
        try:
            made = [*_by_row(self._scheduler.rows([row for of_text in rows for row in of_text]))]
        except Exception as error:
            failed = failure_of(error)
            for asked in dict.fromkeys(work.asked for work in batch):
                self._leave(asked, failed)
            return
        done = 0
        for work, fed in zip(batch, rows, strict=True):
            choices, logits = zip(*made[done : done + len(fed)], strict=True)
            done += len(fed)
            if work not in self._work:
                continue  # another choice of its request failed
            try:
                self._take(work, work.text.choose(choices, logits, self._slots.name))
            except Exception as error:
                self._leave(work.asked, failure_of(error))

    def _take(self, work: _AtWork, tokens: Sequence[int]) -> None:
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
        asked.job.deliver(ChoiceEnded(work.choice, text.stop_reason, self._free(work)))
        asked.ended += 1
        if asked.ended == asked.job.request.choices:
            self._leave(asked, Ended())

    def _free(self, work: _AtWork) -> TokenCounts:
        """Give the slot of a choice back; what it counted."""
        self._work.remove(work)
        self._pool.give_back(work.slot)
        return self._jobs.tally.end(work.text)

    def _leave(self, asked: _Asked, last: Event) -> None:
        """Give the slots of a request back, and say how it ended."""
        for work in [work for work in self._work if work.asked is asked]:
            self._free(work)
        if self._more is asked:
            self._more = None
        self._jobs.end(asked.job, last)


@dataclass(eq=False)
class _Asked:
    """A request at work, and how many of its choices were begun and have ended."""

    job: EngineJob
    ids: Sequence[int]
    deadline_s: float
    begun: int = 0
    ended: int = 0


@dataclass(frozen=True, eq=False)
class _AtWork:
    """A choice that is generated in a slot; and texts that came before, with the rows that it will have of theirs."""

    asked: _Asked
    slot: Slot
    choice: int
    text: RunningText
    behind: list[tuple[_AtWork, int]]


def _by_row(calls: Iterator[Mapping[str, Any]]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """The choice and the logits of each row."""
    for made in calls:
        yield from zip(made[CHOICE].tolist(), made[LOGITS], strict=True)
