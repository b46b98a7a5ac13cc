"""The last observations of a time: how long it takes where nothing disturbs it, and whether that has changed."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable

WINDOW = 63  # observations that are remembered
RECENT = 7  # those that say how fast the processor is now, and enough to believe without a prediction
_LOOKS_BACK, _BETWEEN = 40, 16  # times that tell a change; the last of them, among which it may be already
_TO_SD = 1.8  # of a normal distribution, from what lies between its lower tenth and its lower quartile
_DISTURBED = 1.25  # times the tenth part, from which on other work is likely to have made a time longer
_DRIFT = 0.2  # how far off the last few are that show another speed
_LEFT_OUT = 10  # of so many times the longest one does not count for what is usual: it may be a pause
_USUALLY, _NOISE = 8.0, 0.05  # times with which a stretch is half believed; relative, that is no stretch


class Seen:
    """The last observations of a time.

    Other work on the machine makes a time longer and nothing makes it shorter: a low quantile hardly moves with it.
    They are put in order where they are asked for, because many are added for each decision.
    """

    __slots__ = ("_ascending", "_stretch", "times")

    def __init__(self, times: Iterable[float] = ()) -> None:
        """Start with some."""
        self.times = deque(times, maxlen=WINDOW)
        self._ascending: list[float] | None = None  # None: one was added since
        self._stretch: float | None = None

    def append(self, seconds: float) -> None:
        """Add one, and forget the oldest."""
        self.times.append(seconds)
        self._ascending = self._stretch = None

    def extend(self, times: Iterable[float]) -> None:
        """Add some in turn."""
        self.times.extend(times)
        self._ascending = self._stretch = None

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self.times)

    @property
    def _sorted(self) -> list[float]:
        if self._ascending is None:
            self._ascending = sorted(self.times)
        return self._ascending

    @property
    def low(self) -> float:
        """Seconds: the tenth part of them took less; of up to ten, the least."""
        return self._sorted[(len(self.times) - 1) // 10]

    @property
    def median(self) -> float:
        """Seconds: half of them took less; of an even number the lower of the two in the middle."""
        return self._sorted[(len(self.times) - 1) // 2]

    @property
    def spread(self) -> float:
        """Relative standard deviation of undisturbed times, from the lower quartile."""
        return _TO_SD * (self._sorted[(len(self._sorted) - 1) >> 2] / self.low - 1)

    @property
    def stretch(self) -> float:
        """What it usually takes over `low`: the mean, of four and more without the longest tenth."""
        if self._stretch is None:
            count = len(self.times)
            usual = self._sorted[: count - max(1, count // _LEFT_OUT)] if count > 3 else self._sorted
            self._stretch = sum(usual) / len(usual) / self.low
        return self._stretch

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


def stretched(seen: Seen, plain: Seen) -> float:
    """How many times as much other work on the machine makes a time longer as it makes plain steps; 1 within noise.

    A core that is shared in slices makes each step longer that is longer than a slice, and a shorter one now and then:
    the low quantile of the one has the waiting in it, that of the other has not. A few times say little of that: they
    are expected to be as much longer as plain steps are.
    """
    expected, count = plain.stretch, len(seen)
    found = (count * seen.stretch + _USUALLY * expected) / (count + _USUALLY) / expected
    return max(found - _NOISE, min(1.0, found + _NOISE))
