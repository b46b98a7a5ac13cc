"""The drafter's thread, which lives as long as the session: TVM keeps buffers for every thread that runs a model."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType

from hetero_sd.runtime.decode.drafters import Drafter
from hetero_sd.runtime.decode.overlapped.draft_side import DraftSide
from hetero_sd.runtime.decode.overlapped.messages import Begin, End, Ended, Failed, ToDrafter, ToTarget, Verdict
from hetero_sd.runtime.decode.sampling import Rng


class DraftThread:
    """A context manager that starts the thread, and joins it at the end: within one step of the drafter."""

    def __init__(self, cpus: Sequence[int] = (), clock: Callable[[], float] = time.perf_counter) -> None:
        """Stay on ``cpus``, where some are given; ``clock`` gives seconds, the same in both threads."""
        self._inbox: SimpleQueue[ToDrafter | None] = SimpleQueue()
        self._outbox: SimpleQueue[ToTarget] = SimpleQueue()
        self._cpus, self._clock, self._texts = tuple(cpus), clock, 0
        self._thread = threading.Thread(target=self._run, name="drafter", daemon=True)

    def __enter__(self) -> DraftThread:
        """Start."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Join."""
        self._inbox.put(None)
        self._thread.join()

    # -- for the target's thread ----------------------------------------------------------------------------------

    def begin(
        self,
        drafter: Drafter,
        tokens: Sequence[int],
        limit: int,
        lead: int,
        least: int,
        rng: Callable[[int], Rng],
    ) -> int:
        """Let the drafter begin a text, see :class:`Begin`; return its number."""
        self._texts += 1
        self._inbox.put(Begin(self._texts, drafter, list(tokens), limit, lead, least, rng))
        return self._texts

    def judge(self, text: int, length: int, token: int) -> None:
        """Tell the drafter how far the text is certain, and its last token."""
        self._inbox.put(Verdict(text, length, token, self._clock()))

    def end(self, text: int) -> None:
        """Tell the drafter that the text has ended; :class:`Ended` is the last message of it."""
        self._inbox.put(End(text))

    def receive(self, wait: bool) -> tuple[ToTarget | None, bool]:
        """The drafter's next message, and whether it was waited for; None where there is none and none is waited for.

        Of this text, or of one before it.
        """
        try:
            return self._outbox.get_nowait(), False
        except Empty:
            return (self._outbox.get(), True) if wait else (None, False)

    # -- the drafter's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self._cpus)
        side: DraftSide | None = None
        while True:
            waits = self._inbox.empty()
            message = self._inbox.get()
            if message is None:
                return
            if isinstance(message, Begin):
                side = DraftSide(message, self._outbox.put, self._clock)
            elif isinstance(message, End):
                side = None
                self._outbox.put(Ended(message.text))
            if side is None:
                continue
            text = message.text
            try:
                if isinstance(message, Verdict):
                    side.judge(message, self._clock() - message.sent_s if waits else None)
                while self._inbox.empty() and side.work():
                    pass
            except BaseException as error:  # whatever it is, the target must not wait for drafts
                side = None
                self._outbox.put(Failed(text, error))
