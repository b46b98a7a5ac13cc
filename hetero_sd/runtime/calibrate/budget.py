"""A time budget for measurements: nothing is begun that, by what was seen so far, would not end in time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from statistics import median


class Budget:
    """Seconds to spend, and what each kind of work took so far: one slow time among others does not count."""

    def __init__(self, seconds: float, clock: Callable[[], float] | None = None) -> None:
        """Start it; `clock` gives seconds (None: time.monotonic)."""
        self.seconds = seconds
        self._clock = clock or time.monotonic
        self._start = self._clock()
        self._times: dict[object, list[float]] = {}

    @property
    def spent_s(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def allows(self, kind: object, guess_s: float = 0.0, share: float = 1.0) -> bool:
        """Whether work of that kind ends within that share.

        It takes the median of its times, or a guess where it was not done yet. A single time may be a slow one, so that
        a shorter guess counts in its place.
        """
        times = self._times.get(kind, [])
        guess_s = guess_s if not times else min(times[0], guess_s or times[0]) if len(times) == 1 else median(times)
        return self.spent_s + guess_s <= share * self.seconds

    def took_s(self, kind: object) -> float | None:
        """The median time of work of that kind; None where it was not done yet."""
        return median(self._times[kind]) if kind in self._times else None

    @contextlib.contextmanager
    def spend(self, kind: object) -> Iterator[None]:
        """Work of a kind, timed."""
        begin = self._clock()
        try:
            yield
        finally:
            self._times.setdefault(kind, []).append(self._clock() - begin)
