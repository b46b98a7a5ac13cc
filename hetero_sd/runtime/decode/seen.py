"""The last observations of a time, with their median and spread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median, median_low

WINDOW = 31  # observations that are remembered
RECENT = 7  # those that say how fast the processor is now, and enough for a median
_MAD_TO_SD = 1.4826  # of a normal distribution


class Seen:
    """The last observations of a time; the median and its spread are computed once for each."""

    def __init__(self, times: Iterable[float] = ()) -> None:
        """Start with some."""
        self.times = deque(times, maxlen=WINDOW)
        self._median: float | None = None
        self._spread: float | None = None

    def append(self, seconds: float) -> None:
        """Add one, and forget the oldest."""
        self.times.append(seconds)
        self._median = self._spread = None

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self.times)

    @property
    def median(self) -> float:
        """Seconds; of a few, the lower one: a pause of the system makes a time longer, nothing shorter."""
        if self._median is None:
            self._median = (median if len(self.times) >= RECENT else median_low)(self.times)
        return self._median

    @property
    def spread(self) -> float:
        """Relative standard deviation, from the median absolute deviation."""
        if self._spread is None:
            self._spread = _MAD_TO_SD * median([abs(t - self.median) for t in self.times]) / self.median
        return self._spread
