"""The acceptance of one source of drafts, from what the run has seen of it."""

from __future__ import annotations

import math

_SHORT, _LONG = 0.97, 0.999  # what a memory keeps from one token of text to the next
_LONGEST_REST = 200  # tokens without drafts that count at most
_LEAST_SHORT = 6.0  # judged tokens that the short memory needs to say that the text has changed
_SURPRISE = 2.7  # standard deviations that say it


class LiveAcceptance:
    """Two memories of accepted and rejected tokens.

    The long one forgets within about 1000 tokens of text and starts from what was expected; it is what is believed. The
    short one forgets within about 30. Where the two differ by more than chance explains, the text has changed, and the
    long memory starts anew from the short one.
    """

    def __init__(self, expected: float, weight: float, at: int = 0) -> None:
        """Expect an acceptance, with the weight of so many judged tokens, from ``at`` tokens of text on."""
        self._long = [weight * expected, weight * (1 - expected)]
        self._short = [0.0, 0.0]
        self._at = at

    def observe(self, accepted: int, drafted: int, at: int) -> bool:
        """Learn from a round that drafted from this source, and ended after ``at`` tokens of text.

        Return whether the text has changed.
        """
        tokens, self._at = min(at - self._at, _LONGEST_REST), at
        for memory, keep in ((self._short, _SHORT**tokens), (self._long, _LONG**tokens)):
            memory[0] = keep * memory[0] + accepted
            memory[1] = keep * memory[1] + (accepted < drafted)
        if not self._changed():
            return False
        self._long = list(self._short)
        return True

    def _changed(self) -> bool:
        recent, mean = sum(self._short), self.mean
        if recent < _LEAST_SHORT:
            return False
        spread = math.sqrt(max(mean * (1 - mean), 0.02) / recent)
        return abs(self._short[0] / recent - mean) > _SURPRISE * spread

    @property
    def mean(self) -> float:
        """The acceptance believed in."""
        return self._long[0] / self.weight

    @property
    def weight(self) -> float:
        """Judged tokens that it was learnt from, those that count for what was expected among them."""
        return sum(self._long)

    @property
    def cautious(self) -> float:
        """One standard deviation less, of a proportion seen in as many judged tokens as are remembered."""
        return max(0.0, self.mean - self._deviation)

    @property
    def hopeful(self) -> float:
        """One standard deviation more."""
        return min(1.0, self.mean + self._deviation)

    @property
    def _deviation(self) -> float:
        return math.sqrt(self.mean * (1 - self.mean) / (self.weight + 1))
