"""Several answers at a time, each in a slot of the target: an Engine whose thread is the caller's of :meth:`run`.

Requests join and leave between steps. A step feeds one chunk of a prompt, of the request that came first among those
that are read, and then one row of every text that is generated: so a text waits for one chunk at most between two of
its tokens. Nothing is drafted. A text's tokens are those that it would have alone, whatever runs beside it. What others
have read of a prompt is not read again; so the answers to one request, each in a slot of its own, read it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hetero_sd.runtime.model.kept_prefix import KeptPrefix
from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, NotFiniteError, Slots
from hetero_sd.runtime.model.slot_pool import Slot, SlotPool, worth_sharing
from hetero_sd.runtime.serve.counts import Snapshot, TokenCounts
from hetero_sd.runtime.serve.engine import ChoiceEnded, Ended, Event, GenerationRequest, Started, TextPiece
from hetero_sd.runtime.serve.jobs import ENDS, EngineJob, Jobs, encode, failure_of, took_too_long
from hetero_sd.runtime.serve.running_text import RunningText
from hetero_sd.runtime.session import Session


class BatchEngine:
    """Implements the Engine protocol."""

    def __init__(self, session: Session, slots: Slots, most_waiting: int, answer_s: float, keep_rows: int = 0) -> None:
        """Begin with an empty queue.

        Args:
            session: encodes prompts, and has what requests leave out; nothing else uses its models.
            slots: of its target.
            most_waiting: requests that wait while all slots are taken.
            answer_s: after which a request is ended, counted from its turn.
            keep_rows: for beginnings of texts that have no slot any more, beside what sharing saves.
        """
        self._session, self._slots, self._answer_s = session, slots, answer_s
        self._pool = SlotPool(slots, keep_rows)
        if isinstance(session.models.target, KeptPrefix):
            self._pool.every[0].tokens = session.models.target.hand_over()
        self._jobs = Jobs(most_waiting, slots.slots)
        self._work: list[_AtWork] = []  # in order of arrival
        self._more: _Asked | None = None  # the request some choices of which have no slot yet

    def submit(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> EngineJob:
        """See :meth:`hetero_sd.runtime.serve.engine.Engine.submit`."""
        return self._jobs.submit(request, deliver)

    def snapshot(self) -> Snapshot:
        """See :meth:`hetero_sd.runtime.serve.engine.Engine.snapshot`; the rows are those of all slots."""
        return self._jobs.snapshot(self._slots.slots * self._slots.context, self._pool.kept_rows)

    def stop(self) -> None:
        """Make :meth:`run` return soon; what runs is ended. For signal handlers, too: it takes no lock."""
        self._jobs.stop()

    def run(self) -> None:
        """Answer requests until :meth:`stop`; those that run or wait then are told."""
        try:
            while not self._jobs.stopping:
                if not self._work and self._more is None:
                    self._jobs.wait()
                self._end_what_nobody_waits_for()
                self._admit()
                self._read()
                self._generate()
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
        while self._pool.free and (asked := self._more or self._next()) is not None:
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
        slot = self._pool.take(asked.ids)
        try:
            text = RunningText(self._session, slot, asked.ids, asked.job.request, asked.begun)
        except Exception:
            self._pool.give_back(slot)
            raise
        self._jobs.tally.begin(text)
        return _AtWork(asked, slot, asked.begun, text)

    def _readable(self) -> list[_AtWork]:
        """Those whose prompts are to be read, in order of arrival, after they have what others hold of them.

        One that begins as an earlier one that is still read waits for these rows.
        """
        found: list[_AtWork] = []
        for work in (work for work in self._work if work.text.reading):
            ids = work.asked.ids
            if any(worth_sharing(work.slot, ids, earlier.asked.ids) for earlier in found):
                continue
            work.text.trace.kept_tokens += self._pool.share(work.slot, ids)
            if work.text.reading:
                found.append(work)
        return found

    def _read(self) -> None:
        """One chunk of the first prompt that has one."""
        work = next(iter(self._readable()), None)
        if work is None:
            return
        try:
            token = work.text.read(self._slots.prefill_width)
            if token is not None:
                self._take(work, token)
        except Exception as error:
            self._leave(work.asked, failure_of(error))

    def _generate(self) -> None:
        """One row of every text that is not being read."""
        batch = [work for work in self._work if not work.text.reading]
        if not batch:
            return
        try:
            made = self._slots.rows([work.text.row for work in batch])
        except Exception as error:
            failed = failure_of(error)
            for asked in dict.fromkeys(work.asked for work in batch):
                self._leave(asked, failed)
            return
        for work, choice, logits in zip(batch, made[CHOICE].tolist(), made[LOGITS], strict=True):
            if work not in self._work:
                continue  # another choice of its request failed
            try:
                if choice < 0:
                    raise NotFiniteError(self._slots.name, f" after {work.text.row.pos + 1} tokens")
                self._take(work, work.text.choose(choice, logits))
            except Exception as error:
                self._leave(work.asked, failure_of(error))

    def _take(self, work: _AtWork, token: int) -> None:
        """Deliver what a token completes, and end the choice where it is the last one."""
        text, asked = work.text, work.asked
        for piece in text.take(token):
            if piece.text:
                asked.job.deliver(TextPiece(work.choice, piece.text))
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
    """A choice that is generated in a slot."""

    asked: _Asked
    slot: Slot
    choice: int
    text: RunningText
