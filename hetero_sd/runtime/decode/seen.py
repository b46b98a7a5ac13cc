"""The last observations of a time: how long it takes where nothing disturbs it, and whether that has changed."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable

WINDOW = 63  # observations that are remembered
RECENT = 7  # those that say how fast the processor is now, and enough to believe without a prediction
_LOOKS_BACK, _BETWEEN = 40, 16  # times that tell a change; the last of them, among which it may be already
_TO_SD = 1.8  # of a normal distribution, from what lies between its lower tenth and its lower quartile
_DISTURBED = 1.25  # times the tenth part, from which on other work is likely to have made a time longer
_DRIFT = 0.2  # how far off the last few are that show another speed


class Seen:
    """The last observations of a time, also in ascending order.

    Other work on the machine makes a time longer and nothing makes it shorter: a low quantile hardly moves with it.
    """

    __slots__ = ("_sorted", "times")

    def __init__(self, times: Iterable[float] = ()) -> None:
        """Start with some."""
        self.times = deque(times, maxlen=WINDOW)
        self._sorted = sorted(self.times)

    def append(self, seconds: float) -> None:
        """Add one, and forget the oldest."""
        if len(self.times) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self.times[0])]
        self.times.append(seconds)
        insort(self._sorted, seconds)

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self.times)

    @property
    def low(self) -> float:
        """Seconds: the tenth part of them took less; of up to ten, the least."""
        return self._sorted[(len(self._sorted) - 1) // 10]

    @property
    def median(self) -> float:
        """Seconds: half of them took less; of an even number the lower of the two in the middle."""
        return self._sorted[(len(self._sorted) - 1) // 2]

    @property
    def spread(self) -> float:
        """Relative standard deviation of undisturbed times, from the lower quartile."""
        return _TO_SD * (self._sorted[(len(self._sorted) - 1) >> 2] / self.low - 1)

    @property
    def disturbed(self) -> int:
        """How many took clearly longer."""
        return len(self._sorted) - bisect_left(self._sorted, _DISTURBED * self.low)

    def change(self) -> float:
        """What the last few took over what others before them took, where it is clearly another time; else 1.

        Slower: the last few all took longer than three quarters of those before. Faster: three quarters of the last few
        took less than a tenth of those before.
        """
        if len(self.times) < 2 * RECENT:
            return 1.0
        times = list(self.times)[-_LOOKS_BACK:]
        recent, middle = sorted(times[-RECENT:]), self._sorted[len(self._sorted) // 2]
        if recent[0] < middle < recent[-2]:
            return 1.0
        before = sorted(times[: max(RECENT, len(times) - _BETWEEN)])
        change = recent[1] / before[(len(before) - 1) >> 2]
        slower = change > 1 + _DRIFT and recent[0] > before[3 * len(before) // 4]
        faster = change < 1 - _DRIFT and recent[3 * RECENT // 4] < before[len(before) // 10]
        return change if slower or faster else 1.0
