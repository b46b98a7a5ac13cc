"""Several answers at a time, each in a slot of the target: an Engine whose thread is the caller's of :meth:`run`.

Requests join and leave between steps. A step feeds one chunk of a prompt, of the request that came first among those
that are read, and then one row of every text that is generated: so a text waits for one chunk at most between two of
its tokens. Nothing is drafted. A text's tokens are those that it would have alone, whatever runs beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, NotFiniteError, Slots
from hetero_sd.runtime.model.slot_pool import Slot, SlotPool
from hetero_sd.runtime.serve.counts import Snapshot
from hetero_sd.runtime.serve.engine import ChoiceEnded, Ended, Event, GenerationRequest, Started, TextPiece
from hetero_sd.runtime.serve.jobs import ENDS, EngineJob, Jobs, encode, failure_of, took_too_long
from hetero_sd.runtime.serve.running_text import RunningText
from hetero_sd.runtime.session import Session


class BatchEngine:
    """Implements the Engine protocol."""

    def __init__(self, session: Session, slots: Slots, most_waiting: int, answer_s: float) -> None:
        """Begin with an empty queue.

        Args:
            session: encodes prompts, and has what requests leave out; nothing else uses its models.
            slots: of its target.
            most_waiting: requests that wait while all slots are taken.
            answer_s: after which a request is ended, counted from its turn.
        """
        self._session, self._slots, self._answer_s = session, slots, answer_s
        self._pool = SlotPool(slots)
        self._jobs = Jobs(most_waiting, slots.slots)
        self._work: list[_AtWork] = []  # in order of arrival

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
                if not self._work:
                    self._jobs.wait()
                self._end_what_nobody_waits_for()
                self._admit()
                self._read()
                self._generate()
        finally:
            for work in [*self._work]:
                self._leave(work, ENDS)
            self._jobs.close()

    def _end_what_nobody_waits_for(self) -> None:
        now_s = time.monotonic()
        for work in [*self._work]:
            if work.job.cancelled:
                self._leave(work, ENDS)
            elif now_s > work.deadline_s:
                self._leave(work, took_too_long(self._answer_s))

    def _admit(self) -> None:
        """Begin requests while there are free slots."""
        while self._pool.free and (job := self._jobs.take()) is not None:
            try:
                ids = encode(self._session, job.request.prompt)
                slot = self._pool.take(ids)
            except Exception as error:
                self._jobs.end(job, failure_of(error))
                continue
            work = _AtWork(job, ids, slot, time.monotonic() + self._answer_s)
            self._work.append(work)
            try:
                self._begin(work, 0)
            except Exception as error:
                self._leave(work, failure_of(error))
            else:
                job.deliver(Started(len(ids)))

    def _begin(self, work: _AtWork, choice: int) -> None:
        work.choice = choice
        work.text = RunningText(self._session, work.slot, work.ids, work.job.request, choice)
        self._jobs.tally.begin(work.text)

    def _read(self) -> None:
        """One chunk of the first prompt that has one."""
        work = next((work for work in self._work if work.running.reading), None)
        if work is None:
            return
        try:
            token = work.running.read(self._slots.prefill_width)
            if token is not None:
                self._take(work, token)
        except Exception as error:
            self._leave(work, failure_of(error))

    def _generate(self) -> None:
        """One row of every text that is not being read."""
        batch = [work for work in self._work if not work.running.reading]
        if not batch:
            return
        try:
            made = self._slots.rows([work.running.row for work in batch])
        except Exception as error:
            failed = failure_of(error)
            for work in batch:
                self._leave(work, failed)
            return
        for work, choice, logits in zip(batch, made[CHOICE].tolist(), made[LOGITS], strict=True):
            try:
                if choice < 0:
                    raise NotFiniteError(self._slots.name, f" after {work.running.row.pos + 1} tokens")
                self._take(work, work.running.choose(choice, logits))
            except Exception as error:
                self._leave(work, failure_of(error))

    def _take(self, work: _AtWork, token: int) -> None:
        """Deliver what a token completes, and go on with the request's next choice, or end it."""
        text = work.running
        for piece in text.take(token):
            if piece.text:
                work.job.deliver(TextPiece(work.choice, piece.text))
        if text.stop_reason is None:
            return
        work.text = None
        work.job.deliver(ChoiceEnded(work.choice, text.stop_reason, self._jobs.tally.end(text)))
        if work.choice + 1 == work.job.request.choices:
            self._leave(work, Ended())
            return
        del work.slot.tokens[min(work.slot.held(work.ids), len(work.ids) - 1) :]
        self._begin(work, work.choice + 1)

    def _leave(self, work: _AtWork, last: Event) -> None:
        """Give the slot back, and say how the request ended."""
        if work.text is not None:
            self._jobs.tally.end(work.text)
            work.text = None
        self._work.remove(work)
        self._pool.give_back(work.slot)
        self._jobs.end(work.job, last)


class _AtWork:
    """A request that has a slot, and the choice that is generated."""

    def __init__(self, job: EngineJob, ids: Sequence[int], slot: Slot, deadline_s: float) -> None:
        self.job, self.ids, self.slot, self.deadline_s = job, ids, slot, deadline_s
        self.choice = 0
        self.text: RunningText | None = None

    @property
    def running(self) -> RunningText:
        assert self.text is not None
        return self.text
