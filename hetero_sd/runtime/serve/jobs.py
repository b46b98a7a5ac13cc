"""Requests on their way through an engine: the bounded queue, those at work, and how each of them ends."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

from hetero_sd.runtime.decode.trace import Trace
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
    Ended,
    EngineEnding,
    Event,
    Failed,
    GenerationRequest,
    QueueFull,
)
from hetero_sd.runtime.serve.shown_tokens import ShownTokens, TokenTexts
from hetero_sd.runtime.session import PromptTooLong, Session
from hetero_sd.runtime.text.chat_template import Chat
from hetero_sd.runtime.text.prompts import Prompt
from targets.errors import UserError

ENDS = Failed(ENDING, "the server ends: ask again later")
AT_FAULT = Failed(FAULT, "the server failed on this request; what it printed says more")


class EngineJob:
    """A request in the queue or at work; implements the Job protocol."""

    def __init__(
        self, request: GenerationRequest, deliver: Callable[[Event], None], forget: Callable[[EngineJob], None]
    ) -> None:
        """Not cancelled yet; `forget` is told when it is."""
        self.request, self.deliver, self._forget = request, deliver, forget
        self.cancelled = False
        self.arrived_s = time.monotonic()

    def cancel(self) -> None:
        """See :meth:`hetero_sd.runtime.serve.engine.Job.cancel`."""
        self.cancelled = True
        self._forget(self)


class Jobs:
    """The queue of an engine and its requests at work; filled from any thread, emptied on the engine's."""

    def __init__(self, most_waiting: int, places: int) -> None:
        """Begin with none.

        Args:
            most_waiting: requests that wait while as many as there are places are at work.
            places: requests that can be at work.
        """
        self.tally, self.stopping = Tally(), False
        self._most_waiting, self._places = most_waiting, places
        self._waiting: deque[EngineJob] = deque()
        self._at_work: list[EngineJob] = []
        self._lock = threading.Lock()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    def submit(self, request: GenerationRequest, deliver: Callable[[Event], None]) -> EngineJob:
        """See :meth:`hetero_sd.runtime.serve.engine.Engine.submit`."""
        job = EngineJob(request, deliver, self._forget)
        with self._lock:
            if self.stopping:
                raise EngineEnding
            if len(self._waiting) + len(self._at_work) >= self._most_waiting + self._places:
                self.tally.outcomes[QUEUE_FULL] += 1
                raise QueueFull
            self._waiting.append(job)
        self._wake.put(None)
        return job

    def wait(self) -> None:
        """Until a request waits, or :meth:`stop`; perhaps sooner."""
        if not self._waiting:
            self._wake.get()
        with contextlib.suppress(queue.Empty):
            while True:
                self._wake.get_nowait()

    def take(self) -> EngineJob | None:
        """The request whose turn it is, which is at work from here on; None where none waits."""
        with self._lock:
            if not self._waiting:
                return None
            job = self._waiting.popleft()
            self._at_work.append(job)
        self.tally.wait_s += time.monotonic() - job.arrived_s
        return job

    def end(self, job: EngineJob, last: Event) -> None:
        """Count how a request at work ended, and deliver its last event."""
        with self._lock:
            self.tally.outcomes[CANCELLED if job.cancelled else _outcome(last)] += 1
            self._at_work.remove(job)
        job.deliver(last)

    def stop(self) -> None:
        """Take no more. For signal handlers, too: it takes no lock."""
        self.stopping = True
        self._wake.put(None)

    def close(self) -> None:
        """Tell those that wait that nothing comes."""
        self.stopping = True
        while (job := self.take()) is not None:
            self.end(job, ENDS)

    def snapshot(self, cache_rows: int, cache_rows_used: int) -> Snapshot:
        """See :meth:`hetero_sd.runtime.serve.engine.Engine.snapshot`."""
        with self._lock:
            running, waiting = len(self._at_work), len(self._waiting)
        tally = self.tally
        counts = dict(tally.outcomes), tally.tokens(), tally.wait_s, running, waiting, self._most_waiting
        return Snapshot(*counts, cache_rows, cache_rows_used, tally.recent())

    def _forget(self, job: EngineJob) -> None:
        """Free the place in the queue of a request that nobody waits for."""
        with self._lock:
            if job in self._waiting:
                self._waiting.remove(job)
                self.tally.outcomes[CANCELLED] += 1


def encode(session: Session, prompt: str | list[int] | Chat) -> list[int]:
    """The ids of a prompt; a text gets no chat template.

    Raises:
        UserError: see :meth:`hetero_sd.runtime.session.Session.encode`.
    """
    where = "the conversation" if isinstance(prompt, Chat) else "the prompt"
    if isinstance(prompt, str) and session.text is not None:
        prompt = session.text.encode(prompt)
    return session.encode(Prompt(prompt, where))


def shown_tokens(session: Session, trace: Trace) -> ShownTokens | None:
    """The tokens of an answer, for a client that asked for their probabilities."""
    if trace.logprobs is None or session.text is None:
        return None
    texts = TokenTexts(session.text.decode, session.text.name_of)
    return ShownTokens(texts, trace.logprobs)


def failure_of(error: Exception) -> Failed:
    """What a client is told of an exception; what is no fault of the client is told on the server, too."""
    if isinstance(error, NotFiniteError):
        note(str(error))
        return Failed(FAULT, str(error))
    if isinstance(error, UserError):
        return Failed(PROMPT_TOO_LONG if isinstance(error, PromptTooLong) else REFUSED, str(error))
    report("run.py", "answering a request", error)
    return AT_FAULT


def took_too_long(answer_s: float) -> Failed:
    """What is told of an answer that was ended."""
    return Failed(TOOK_TOO_LONG, f"the answer took more than {answer_s:g} s: ask for fewer tokens")


def _outcome(last: Event) -> str:
    """How a request ended that nobody cancelled."""
    if isinstance(last, Ended):
        return ANSWERED
    return NOT_ASKED_RIGHT if isinstance(last, Failed) and last.kind in (REFUSED, PROMPT_TOO_LONG) else NOT_ANSWERED
