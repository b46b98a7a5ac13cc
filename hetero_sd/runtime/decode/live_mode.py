"""Drafting while the target verifies, or taking turns: decided by what the run itself shows.

Taking turns, with the target alone among its draft lengths, is what `LiveGamma` decides; its expected speed is compared
with that of overlapped rounds, which is the speed that was measured, and before any was measured the cost model's
formula with the run's own times and acceptance. A text begins in the faster mode; an overlapped one that turns out to
be slower, or that lost what may be lost against the target alone, goes on by taking turns. What was left is tried
again after 1, 2, 4, ... texts, where the formula still promises it.

Overlapped rounds wait for no draft, for all, or for as many as the plan says. Which is faster is measured, too: a way
that the formula does not take for much slower than the fastest known one gets a text; if it is hardly slower, another
one after 1, 2, 4, ... texts.

The same observations lead to the same decisions, and no decision changes greedy text.
"""

from __future__ import annotations

from costmodel.schema.plan import OVERLAPPED, PlannedOverlap
from hetero_sd.runtime.decode.live_beside import LEAST_ROUNDS, Beside, Rest
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.trace import Round, Switch

_START_MARGIN, _LEAVE_MARGIN = 1.02, 0.995  # what overlapping must gain to begin; what it may lose before it ends
_PROMISING = 0.8  # of the fastest known way, that the formula says of another one that gets a text
_AGAIN = 0.95  # likewise of one that was measured long ago, by how far the formula was off then


class LiveMode:
    """Decides between overlapped rounds and the turns of a `LiveGamma`; see the module.

    Attributes:
        least: drafts that the target waits for, in the overlapped text that began last.
    """

    def __init__(self, turns: LiveGamma, overlap: PlannedOverlap) -> None:
        """Start from what the plan says of overlapped rounds."""
        self.turns, self.least, self._gamma = turns, overlap.least, overlap.gamma
        self._ways = [Beside(turns, overlap, least) for least in {overlap.least: 0, 0: 0, overlap.gamma: 0}]
        self._way = self._ways[0]
        self._rests = Rest()  # after taking turns was faster
        self._rounds = 0  # of this text
        self._overlaps = True  # as far as is known: the last text began so

    def begin(self, prompt_tokens: int, max_new_tokens: int, waits_for_all: bool = False) -> bool:
        """Whether a new text begins with overlapped rounds; then the turns know of it, too.

        ``waits_for_all``: no other way is possible, because the text is sampled.
        """
        self._rounds = 0
        for way in self._ways:
            if way.rests.text_begins():
                way.forget()
        if self._rests.text_begins():
            for way in self._ways:
                way.forget()
        ways = [way for way in self._ways if way.rests.over and (way.least == self._gamma or not waits_for_all)]
        if not self._rests.over or not ways or (not self._overlaps and not self.turns.may_decide):
            return False  # or little has passed since that was found
        self._way = self._fastest(ways)
        self._overlaps = self._way.tokens_per_s > _START_MARGIN * self.turns_tokens_per_s()
        if self._overlaps:
            self.least = self._way.least
            self.turns.begin(prompt_tokens, max_new_tokens)
        return self._overlaps

    def turns_tokens_per_s(self) -> float:
        """What taking turns is expected to reach, with the best draft length or none."""
        return self.turns.best_tokens_per_s()

    def observe(self, finished: Round) -> Switch | None:
        """Learn from an overlapped round; the switch to taking turns, where it is time for that."""
        way, plain_s = self._way, self.turns.times.plain_s()
        took = way.observe(finished)
        self.turns.observe_beside(finished, took if self._rounds else took - finished.wait_s)  # it read the prompt
        self._rounds += 1
        may_lose_s = self.turns.may_lose_s()
        affordable = may_lose_s >= way.median_s - plain_s
        if affordable and self._rounds < LEAST_ROUNDS:
            return None
        beside, turns = way.tokens_per_s, self.turns_tokens_per_s()
        if affordable and beside >= _LEAVE_MARGIN * turns:
            self._rests.pays()
            return None
        others = [other.tokens_per_s for other in self._ways if other.known and other is not way]
        (way.rests if max(others, default=0.0) > turns else self._rests).fails()
        why = "overlapping lost what may be lost" if not affordable else "taking turns is faster"
        return Switch(
            source=OVERLAPPED,
            before=self._gamma,
            after=0,
            why=why,
            acceptance=self.turns.alpha,
            plain_s=plain_s,
            round_s=way.mean_s,
            speedup=beside * plain_s,
            bank_s=may_lose_s,
        )

    def _fastest(self, ways: list[Beside]) -> Beside:
        """The fastest way, or one that is to be measured; one that is slower rests."""
        best = max(ways, key=lambda way: way.likely_tokens_per_s)
        for way in ways:
            to_be_measured = best.known or (best.off is not None and way.off is None)
            promising = (_PROMISING if way.off is None else _AGAIN) * best.likely_tokens_per_s
            if to_be_measured and way is not best and not way.known and way.likely_tokens_per_s > promising:
                return way
        for way in ways if best.known else ():
            if way.known and way is not best:
                way.rests.fails()
        return best
