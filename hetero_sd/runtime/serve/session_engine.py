"""One answer at a time, in order of arrival, by a session: an Engine whose thread is the caller's of :meth:`run`."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from hetero_sd.runtime.answer import Answer
from hetero_sd.runtime.internal_error import report
from hetero_sd.runtime.load import note
from hetero_sd.runtime.model.protocol import NotFiniteError
from hetero_sd.runtime.serve.counts import (
    ANSWERED,
    CANCELLED,
    NOT_ANSWERED,
    NOT_ASKED_RIGHT,
    QUEUE_FULL,
    Snapshot,
    Tally,
)
from hetero_sd.runtime.serve.engine import (
    ENDING,
    FAULT,
    PROMPT_TOO_LONG,
    REFUSED,
    TOOK_TOO_LONG,
    ChoiceEnded,
    Ended,
    EngineEnding,
    Event,
    Failed,
    GenerationRequest,
    QueueFull,
    Started,
    TextPiece,
)
from hetero_sd.runtime.session import PromptTooLong, Session
from hetero_sd.runtime.text.chat_template import Chat
from hetero_sd.runtime.text.prompts import Prompt
from targets.errors import UserError
from targets.opencl.runtime import OpenCLError

_ENDS = Failed(ENDING, "the server ends: ask again later")
_AT_FAULT = Failed(FAULT, "the server failed on this request; what it printed says more")


class SessionEngine:
    """Implements the Engine protocol."""

    def __init__(self, session: Session, most_waiting: int, answer_s: float) -> None:
        """Begin with an empty queue.

        Args:
            session: makes the text; nothing else uses it.
            most_waiting: requests that wait while one is answered.
            answer_s: after which a request is ended, counted from its turn.
        """
        self._session, self._most_waiting, self._answer_s = session, most_waiting, answer_s
        self._waiting: deque[_SessionJob] = deque()
        self._running: _SessionJob | None = None
        self._stopping = False
        self._lock = threading.Lock()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._tally = Tally()

    def submit(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> _SessionJob:
        """See :meth:`hetero_sd.runtime.serve.engine.Engine.submit`."""
        job = _SessionJob(request, deliver, self._forget)
        with self._lock:
            if self._stopping:
                raise EngineEnding
            if len(self._waiting) + (self._running is not None) > self._most_waiting:
                self._tally.outcomes[QUEUE_FULL] += 1
                raise QueueFull
            self._waiting.append(job)
        self._wake.put(None)
        return job

    def snapshot(self) -> Snapshot:
        """See :meth:`hetero_sd.runtime.serve.engine.Engine.snapshot`."""
        with self._lock:
            running, waiting = int(self._running is not None), len(self._waiting)
        return Snapshot(
            dict(self._tally.outcomes),
            self._tally.tokens(),
            self._tally.wait_s,
            running,
            waiting,
            self._most_waiting,
            self._session.context,
            getattr(self._session.models.target, "kept_rows", 0),
            self._tally.recent(),
        )

    def stop(self) -> None:
        """Make :meth:`run` return soon; the running answer is ended. For signal handlers, too: it takes no lock."""
        self._stopping = True
        self._wake.put(None)

    def run(self) -> None:
        """Answer requests until :meth:`stop`; those that still wait then are told."""
        try:
            while not self._stopping:
                self._wake.get()
                if (job := self._next()) is not None:
                    self._serve(job)
        finally:
            self._stopping = True
            while (job := self._next()) is not None:
                with self._lock:
                    self._tally.outcomes[NOT_ANSWERED] += 1
                job.deliver(_ENDS)

    def _next(self) -> _SessionJob | None:
        with self._lock:
            self._running = self._waiting.popleft() if self._waiting else None
            return self._running

    def _forget(self, job: _SessionJob) -> None:
        """Free the place in the queue of a request that nobody waits for."""
        with self._lock:
            if job in self._waiting:
                self._waiting.remove(job)
                self._tally.outcomes[CANCELLED] += 1

    def _serve(self, job: _SessionJob) -> None:
        """Answer a request, and say how it ended, whatever happens."""
        self._tally.wait_s += time.monotonic() - job.arrived_s
        last: Event = _AT_FAULT
        try:
            last = self._answer(job)
        except NotFiniteError as error:
            note(str(error))
            last = Failed(FAULT, str(error))
        except UserError as error:
            last = Failed(PROMPT_TOO_LONG if isinstance(error, PromptTooLong) else REFUSED, str(error))
        except OpenCLError:
            raise  # the models cannot go on: the command ends as it does without --serve
        except Exception as error:
            report("run.py", "answering a request", error)
        finally:
            with self._lock:
                self._tally.outcomes[CANCELLED if job.cancelled else _outcome(last)] += 1
                self._running = None
            job.deliver(last)

    def _answer(self, job: _SessionJob) -> Event:
        """Deliver all events of a request but the last one, which is returned."""
        if self._stopping:
            return _ENDS
        ids = self._encode(job.request.prompt)
        deadline_s = time.monotonic() + self._answer_s
        for choice in range(job.request.choices):
            options = dict(job.request.options)
            if options.get("seed") is not None:
                options["seed"] = job.request.options["seed"] + choice  # type: ignore[operator]
            answer = self._session.answer(ids, **options)  # type: ignore[arg-type]
            answer.interrupted = lambda: job.cancelled or self._stopping or time.monotonic() > deadline_s
            if choice == 0:
                job.deliver(Started(len(ids)))
            self._generate(job, choice, answer)
            if answer.stop_reason is None:
                late = Failed(TOOK_TOO_LONG, f"the answer took more than {self._answer_s:g} s: ask for fewer tokens")
                return _ENDS if self._stopping or job.cancelled else late
        return Ended()

    def _generate(self, job: _SessionJob, choice: int, answer: Answer) -> None:
        self._tally.begin(answer)
        try:
            for piece in answer:
                if piece.text:
                    job.deliver(TextPiece(choice, piece.text))
        finally:
            counts = self._tally.end(answer)
        if answer.trace.lost_drafter is not None:
            note(f"{answer.trace.lost_drafter}; it was left out")
        if answer.stop_reason is not None:
            job.deliver(ChoiceEnded(choice, answer.stop_reason, counts))

    def _encode(self, prompt: str | list[int] | Chat) -> list[int]:
        """The ids of a prompt; a text gets no chat template."""
        session, where = self._session, "the conversation" if isinstance(prompt, Chat) else "the prompt"
        if isinstance(prompt, str) and session.text is not None:
            prompt = session.text.encode(prompt)
        return session.encode(Prompt(prompt, where))


def _outcome(last: Event) -> str:
    """How a request ended that nobody cancelled."""
    if isinstance(last, Ended):
        return ANSWERED
    return NOT_ASKED_RIGHT if isinstance(last, Failed) and last.kind in (REFUSED, PROMPT_TOO_LONG) else NOT_ANSWERED


class _SessionJob:
    """A request in the queue or at work; implements the Job protocol."""

    def __init__(
        self,
        request: GenerationRequest,
        deliver: Callable[[Event], None],
        forget: Callable[[_SessionJob], None],
    ) -> None:
        self.request, self.deliver, self._forget = request, deliver, forget
        self.cancelled = False
        self.arrived_s = time.monotonic()

    def cancel(self) -> None:
        self.cancelled = True
        self._forget(self)
