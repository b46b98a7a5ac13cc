"""Drafting while the target verifies, or taking turns: decided by what the run itself shows.

Taking turns, with the target alone among its draft lengths, is what `LiveGamma` decides; its expected speed is compared
with that of overlapped rounds, which is the speed that was measured, and before any was measured the cost model's
formula with the run's own times and acceptance. A text begins in the faster mode; an overlapped one that turns out to
be slower, or that lost what may be lost against the target alone, goes on by taking turns. What was left is tried
again after 1, 2, 4, ... texts, where the formula still promises it.

The same observations lead to the same decisions, and no decision changes greedy text.
"""

from __future__ import annotations

from collections import deque

from costmodel.contention import Load
from costmodel.early_verification import early_round
from costmodel.schema.plan import OVERLAPPED, PlannedOverlap
from costmodel.speculative import expected_tokens
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.trace import Round, Switch

_WINDOW, _LEAST_ROUNDS = 32, 8  # rounds whose speed is believed; those that must be seen before a decision
_START_MARGIN, _LEAVE_MARGIN = 1.02, 0.995  # what overlapping must gain to begin; what it may lose before it ends
_PAUSE = 4.0  # times the median: a longer round is a pause of the system, and counts as that much
_MOST_TEXTS = 32  # after which overlapping is tried again, at most
_SAME = 0.02  # that what the formula is given may be off, before it is reckoned again
_NO_LIMIT = 1e18  # of the DRAM: what both do to each other is in the slowdowns already


class LiveMode:
    """Decides between overlapped rounds and the turns of a `LiveGamma`; see the module."""

    def __init__(self, turns: LiveGamma, overlap: PlannedOverlap) -> None:
        """Start from what the plan says of overlapped rounds."""
        self.turns, self._overlap = turns, overlap
        self._seen: deque[tuple[int, float]] = deque(maxlen=_WINDOW)  # tokens and seconds of overlapped rounds
        self._texts_left, self._texts_next = 0, 1  # texts before the next try; and after the next failure
        self._rounds = 0  # of this text
        self._overlaps = True  # as far as is known: the last text began so
        self._reckoned: tuple[tuple[float, ...], float] | None = None  # what the formula was given last, and gave

    def begin(self, prompt_tokens: int, max_new_tokens: int) -> bool:
        """Whether a new text begins with overlapped rounds; then the turns know of it, too."""
        self._rounds = 0
        if self._texts_left:
            self._texts_left -= 1
            if self._texts_left:
                return False
            self._seen.clear()  # measured long ago
        if not self._overlaps and not self.turns.may_decide:
            return False  # little has passed since that was found
        self._overlaps = self.overlapped_tokens_per_s() > _START_MARGIN * self.turns_tokens_per_s()
        if self._overlaps:
            self.turns.begin(prompt_tokens, max_new_tokens)
        return self._overlaps

    def turns_tokens_per_s(self) -> float:
        """What taking turns is expected to reach, with the best draft length or none."""
        return self.turns.best_tokens_per_s()

    def overlapped_tokens_per_s(self) -> float:
        """What overlapped rounds reach: as measured, else by the formula."""
        if len(self._seen) >= _LEAST_ROUNDS:
            return sum(tokens for tokens, _ in self._seen) / sum(self._times())
        return self._formula()

    def _formula(self) -> float:
        """By the cost model; the last result, where all that it is made from is the same within a fiftieth."""
        times, overlap = self.turns.times, self._overlap
        steps, draft_s, other_s = times.steps_s(), times.draft_s(MODEL), times.other_s()
        given = (expected_tokens(self.turns.alpha, overlap.gamma), draft_s, other_s, *steps.values())
        last = self._reckoned
        if last is not None and all(abs(a - b) <= _SAME * b for a, b in zip(given, last[0], strict=True)):
            return last[1]
        found = early_round(
            *(self.turns.alpha, overlap.gamma, overlap.least),
            Load(draft_s * overlap.draft_slowdown, 0.0, 0.0),
            lambda n: Load(steps[times.width(n - 1)] * overlap.target_slowdown, 0.0, 0.0),
            *(other_s, _NO_LIMIT, overlap.hand_over_s),
        ).tokens_per_s
        self._reckoned = given, found
        return found

    def observe(self, finished: Round) -> Switch | None:
        """Learn from an overlapped round; the switch to taking turns, where it is time for that."""
        tokens, plain_s = finished.accepted + 1, self.turns.times.plain_s()
        self._seen.append((tokens, finished.total_s))
        took = min(finished.total_s, _PAUSE * self._times()[len(self._seen) // 2])
        self.turns.observe_beside(finished, took if self._rounds else took - finished.wait_s)  # it read the prompt
        self._rounds += 1
        may_lose_s = self.turns.may_lose_s()
        affordable = may_lose_s >= self._times()[len(self._seen) // 2] - plain_s
        if affordable and self._rounds < _LEAST_ROUNDS:
            return None
        beside, turns = self.overlapped_tokens_per_s(), self.turns_tokens_per_s()
        if affordable and beside >= _LEAVE_MARGIN * turns:
            self._texts_next = 1
            return None
        self._texts_left, self._texts_next = self._texts_next, min(2 * self._texts_next, _MOST_TEXTS)
        why = "overlapping lost what may be lost" if not affordable else "taking turns is faster"
        return Switch(
            source=OVERLAPPED,
            before=self._overlap.gamma,
            after=0,
            why=why,
            acceptance=self.turns.alpha,
            plain_s=plain_s,
            round_s=sum(self._times()) / len(self._seen),
            speedup=beside * plain_s,
            bank_s=may_lose_s,
        )

    def _times(self) -> list[float]:
        """The rounds' times in ascending order, a pause of the system counting as a few rounds."""
        times = sorted(seconds for _, seconds in self._seen)
        most = _PAUSE * times[len(times) // 2]
        return [min(seconds, most) for seconds in times]
