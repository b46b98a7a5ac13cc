"""A time budget for measurements: nothing is begun that, by what was seen so far, would not end in time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator


class Budget:
    """Seconds to spend, and what each kind of work took at most so far."""

    def __init__(self, seconds: float, clock: Callable[[], float] | None = None) -> None:
        """Start it; `clock` gives seconds (None: time.monotonic)."""
        self.seconds = seconds
        self._clock = clock or time.monotonic
        self._start = self._clock()
        self._longest: dict[object, float] = {}

    @property
    def spent_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def allows(self, kind: object, guess_s: float = 0.0, share: float = 1.0) -> bool:
        """Whether work of that kind, or of a guessed length where it was not done yet, ends within that share."""
        return self.spent_s + self._longest.get(kind, guess_s) <= share * self.seconds

    def took_s(self, kind: object) -> float:
        """The longest time of work of that kind, 0 where it was not done yet."""
        return self._longest.get(kind, 0.0)

    @contextlib.contextmanager
    def spend(self, kind: object) -> Iterator[None]:
        """Work of a kind, timed."""
        begin = self._clock()
        try:
            yield
        finally:
            self._longest[kind] = max(self._longest.get(kind, 0.0), self._clock() - begin)
