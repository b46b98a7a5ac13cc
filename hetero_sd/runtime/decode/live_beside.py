"""One way of drafting while the target verifies, for how many drafts it waits, and how fast its rounds turned out."""

from __future__ import annotations

from collections import deque

from costmodel.contention import Load
from costmodel.early_verification import early_round
from costmodel.schema.plan import PlannedOverlap
from costmodel.speculative import expected_tokens
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.trace import Round

LEAST_ROUNDS = 8  # that must be seen before a decision
MOST_TEXTS = 32  # after which something is tried again, at most
_WINDOW = 32  # rounds whose speed is believed
_PAUSE = 4.0  # times the median: a longer round is a pause of the system, and counts as that much
_SAME = 0.02  # that what the formula is given may be off, before it is reckoned again
_NO_LIMIT = 1e18  # of the DRAM: what both do to each other is in the slowdowns already


class Rest:
    """Counts the texts in which something is not tried that failed: 1, 2, 4, ... of them."""

    def __init__(self) -> None:
        """Nothing failed."""
        self._left, self._next = 0, 1

    def text_begins(self) -> bool:
        """Count a text; whether a rest ends with it."""
        self._left, ends = max(0, self._left - 1), self._left == 1
        return ends

    @property
    def over(self) -> bool:
        """Whether it may be tried."""
        return not self._left

    def fails(self) -> None:
        """Begin a rest."""
        self._left, self._next = self._next, min(2 * self._next, MOST_TEXTS)

    def pays(self) -> None:
        """The next rest is short."""
        self._next = 1


class Beside:
    """Rounds in which the target waits for so many drafts.

    Attributes:
        least: those drafts.
        rests: after it was slower than another way.
        off: its speed over what the formula promised, when it was run last; None: it never was.
    """

    def __init__(self, turns: LiveGamma, overlap: PlannedOverlap, least: int) -> None:
        """Nothing was seen; the times and the acceptance are those of ``turns``."""
        self.least, self.rests = least, Rest()
        self.off: float | None = None
        self._turns, self._overlap = turns, overlap
        self._seen: deque[tuple[int, float]] = deque(maxlen=_WINDOW)  # tokens and seconds
        self._reckoned: tuple[tuple[float, ...], float] | None = None  # what the formula was given last, and gave

    @property
    def known(self) -> bool:
        """Whether its speed was measured."""
        return len(self._seen) >= LEAST_ROUNDS

    @property
    def tokens_per_s(self) -> float:
        """What its rounds reach: as measured, else by the formula."""
        return self._measured() if self.known else self._formula()

    @property
    def median_s(self) -> float:
        """Of its rounds."""
        return self._times()[len(self._seen) // 2]

    @property
    def mean_s(self) -> float:
        """Of its rounds."""
        return sum(self._times()) / len(self._seen)

    def observe(self, finished: Round) -> float:
        """Learn from a round; the seconds that it took, a pause of the system counting as a few rounds."""
        self._seen.append((finished.accepted + 1, finished.total_s))
        return min(finished.total_s, _PAUSE * self.median_s)

    @property
    def likely_tokens_per_s(self) -> float:
        """The same, but the formula's is corrected by how far it was off when the way was run last."""
        return self._measured() if self.known else self._formula() * (1.0 if self.off is None else self.off)

    def forget(self) -> None:
        """What was measured is long ago: how far the formula was off is all that counts of it."""
        if self._seen:
            self.off = self._measured() / self._formula()
            self._seen.clear()

    def _measured(self) -> float:
        return sum(tokens for tokens, _ in self._seen) / sum(self._times())

    def _formula(self) -> float:
        """By the cost model; the last result, where all that it is made from is the same within a fiftieth."""
        times, overlap = self._turns.times, self._overlap
        steps, draft_s, other_s = times.steps_s(), times.draft_s(MODEL), times.other_s()
        given = (expected_tokens(self._turns.alpha, overlap.gamma), draft_s, other_s, *steps.values())
        last = self._reckoned
        if last is not None and all(abs(a - b) <= _SAME * b for a, b in zip(given, last[0], strict=True)):
            return last[1]
        found = early_round(
            *(self._turns.alpha, overlap.gamma, self.least),
            Load(draft_s * overlap.draft_slowdown, 0.0, 0.0),
            lambda n: Load(steps[times.width(n - 1)] * overlap.target_slowdown, 0.0, 0.0),
            *(other_s, _NO_LIMIT, overlap.hand_over_s),
        ).tokens_per_s
        self._reckoned = given, found
        return found

    def _times(self) -> list[float]:
        """The rounds' times in ascending order, a pause of the system counting as a few rounds."""
        times = sorted(seconds for _, seconds in self._seen)
        most = _PAUSE * times[len(times) // 2]
        return [min(seconds, most) for seconds in times]
