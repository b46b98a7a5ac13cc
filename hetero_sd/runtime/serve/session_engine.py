"""One answer at a time, in order of arrival, by a session: an Engine whose thread is the caller's of :meth:`run`."""

from __future__ import annotations

import time
from collections.abc import Callable

from hetero_sd.runtime.answer import Answer
from hetero_sd.runtime.load import note
from hetero_sd.runtime.serve.counts import Snapshot
from hetero_sd.runtime.serve.engine import ChoiceEnded, Ended, Event, GenerationRequest, Started, TextPiece
from hetero_sd.runtime.serve.jobs import (
    AT_FAULT,
    ENDS,
    EngineJob,
    Jobs,
    encode,
    failure_of,
    shown_tokens,
    took_too_long,
)
from hetero_sd.runtime.serve.shown_tokens import ShownTokens
from hetero_sd.runtime.session import Session
from targets.opencl.runtime import OpenCLError


class SessionEngine:
    """Implements the Engine protocol."""

    def __init__(self, session: Session, most_waiting: int, answer_s: float) -> None:
        """Begin with an empty queue.

        Args:
            session: makes the text; nothing else uses it.
            most_waiting: requests that wait while one is answered.
            answer_s: after which a request is ended, counted from its turn.
        """
        self._session, self._answer_s = session, answer_s
        self._jobs = Jobs(most_waiting, 1)

    def submit(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> EngineJob:
        """See :meth:`hetero_sd.runtime.serve.engine.Engine.submit`."""
        return self._jobs.submit(request, deliver)

    def snapshot(self) -> Snapshot:
        """See :meth:`hetero_sd.runtime.serve.engine.Engine.snapshot`."""
        return self._jobs.snapshot(self._session.context, getattr(self._session.models.target, "kept_rows", 0))

    def stop(self) -> None:
        """Make :meth:`run` return soon; the running answer is ended. For signal handlers, too: it takes no lock."""
        self._jobs.stop()

    def run(self) -> None:
        """Answer requests until :meth:`stop`; those that still wait then are told."""
        jobs = self._jobs
        try:
            while not jobs.stopping:
                jobs.wait()
                while not jobs.stopping and (job := jobs.take()) is not None:
                    self._serve(job)
        finally:
            jobs.close()

    def _serve(self, job: EngineJob) -> None:
        """Answer a request, and say how it ended, whatever happens."""
        last: Event = AT_FAULT
        try:
            last = self._answer(job)
        except OpenCLError:
            raise  # the models cannot go on: the command ends as it does without --serve
        except Exception as error:
            last = failure_of(error)
        finally:
            self._jobs.end(job, last)

    def _answer(self, job: EngineJob) -> Event:
        """Deliver all events of a request but the last one, which is returned."""
        ids = encode(self._session, job.request.prompt)
        deadline_s = time.monotonic() + self._answer_s
        for choice in range(job.request.choices):
            options = dict(job.request.options)
            if options.get("seed") is not None:
                options["seed"] = job.request.options["seed"] + choice  # type: ignore[operator]
            answer = self._session.answer(ids, **options)  # type: ignore[arg-type]
            answer.interrupted = lambda: job.cancelled or self._jobs.stopping or time.monotonic() > deadline_s
            if choice == 0:
                job.deliver(Started(len(ids)))
            self._generate(job, choice, answer, shown_tokens(self._session, answer.trace))
            if answer.stop_reason is None:
                return ENDS if self._jobs.stopping or job.cancelled else took_too_long(self._answer_s)
        return Ended()

    def _generate(self, job: EngineJob, choice: int, answer: Answer, shown: ShownTokens | None) -> None:
        tally = self._jobs.tally
        tally.begin(answer)
        try:
            for piece in answer:
                tokens = () if shown is None else shown.of(piece)
                if piece.text:
                    job.deliver(TextPiece(choice, piece.text, tokens))
        finally:
            counts = tally.end(answer)
        if answer.trace.lost_drafter is not None:
            note(f"{answer.trace.lost_drafter}; it was left out")
        if answer.stop_reason is not None:
            job.deliver(ChoiceEnded(choice, answer.stop_reason, counts))
