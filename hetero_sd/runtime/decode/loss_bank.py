"""How much time drafting may lose against the target alone, and what it lost or gained so far.

That is 1.5 % of the time that passes, half of that where tries fail again and again; the share of the first 100 steps
of the target is there from the beginning, and no more comes until they have passed. Drafting that loses is paid from
it, drafting that gains fills it. While a round begins only where the bank holds what it may lose at most, all its
drafts being rejected, a run is never slower than the target alone by more than

    1.5 % of its time, or of 100 steps + what was lent for reading + what the plan's promise lends,

as long as rounds take what they are expected to take.
"""

from __future__ import annotations

from collections.abc import Callable

LOSS_SHARE = 0.015  # of the time, that may be lost
ADVANCE_STEPS = 100.0  # steps of the target, whose share may be lost before they were made
_LEAST_SHARE, _BACK_OFF = 0.0075, 0.9  # every try that fails makes that share smaller, until one gains
_OPEN_TOKENS = 200  # of text, for which what was noted is reckoned again by what is known later
_MOST_BANKED_STEPS = 16.0
_MOST_DEBT_STEPS = 8.0  # at the start of a text
_PROMISE, _PROMISED_STEP, _PROMISED_STEPS = 1.1, 0.1, 3.0  # a gain; steps for each token that it was judged by; at most


def promised_steps(gain: float, tokens: float) -> float:
    """Steps that may be lost beside the share where the plan promises a gain, by so many judged tokens."""
    return min(_PROMISED_STEPS, _PROMISED_STEP * tokens) if gain > _PROMISE else 0.0


class LossBank:
    """Seconds that may be lost; rounds are noted as they happen and paid for when they are settled."""

    def __init__(self, more_steps: float = 0.0) -> None:
        """Nothing happened yet; ``more_steps`` of the target may be lost beside the share."""
        self._held_s: float | None = None
        self._more_steps = more_steps
        self._share, self._advance_s = LOSS_SHARE, 0.0
        self._lent_s, self._credit_s = 0.0, 0.0  # for reading in this text; what may be lent yet
        self._reserved_s = 0.0  # what the rounds since the last settlement may lose
        self._closed_s, self._left_s = 0.0, 0.0  # what was held, and left of the advance, before what is noted here:
        self._tokens, self._plain_rounds, self._read_s, self._most_lost_s = 0, 0, 0.0, 0.0
        self._beside_lost_s, self._beside_s = 0.0, 0.0  # of rounds that were drafted while the target verified
        self._earned_s, self._paid_for_s = 0.0, 0.0  # the share, and the time that it was given for
        self._played: dict[tuple[str, int], int] = {}  # rounds, by source and drafted tokens

    @property
    def held_s(self) -> float:
        """What may be lost, at the last settlement; what was lent is a debt."""
        return self._held_s or 0.0

    @property
    def free_s(self) -> float:
        """What another round may lose."""
        return self.held_s + self._lent_s - self._reserved_s

    def begin(self, plain_s: float, round_s: Callable[[str, int], float]) -> None:
        """A new text: debts of the one before are forgotten in part. The arguments are those of `settle`."""
        self._lent_s = self._credit_s = 0.0
        if self._held_s is not None:
            self.settle(plain_s, round_s)
            self._close()
            self._held_s = self._closed_s = max(self._held_s, -_MOST_DEBT_STEPS * plain_s)

    def time_until_s(self, seconds: float) -> float:
        """How long plain steps fill it until another round may lose so much."""
        missing = seconds - self.free_s
        return self._advance_s + missing / self._share if missing > 0 else 0.0

    def reserve(self, seconds: float) -> None:
        """A round begins that may lose so much."""
        self._reserved_s += max(0.0, seconds)

    def pays_reading(self, seconds: float) -> bool:
        """Whether reading may go on for so long."""
        return seconds <= self._credit_s + max(0.0, self.free_s)

    def lend(self, seconds: float) -> None:
        """Reading that takes so long is expected to be repaid by the rest of the text, and may be a debt until then."""
        self._credit_s = seconds

    def note_plain(self, rounds: int) -> None:
        """So many plain steps were made."""
        self._plain_rounds += rounds

    def note_drafted(self, source: str, gamma: int, tokens: int) -> None:
        """A round drafted and gave some tokens."""
        self._played[source, gamma] = self._played.get((source, gamma), 0) + 1
        self._tokens += tokens

    def note_beside(self, tokens: int, seconds: float, plain_s: float) -> None:
        """A round that was drafted while the target verified."""
        self._beside_s += seconds
        self._beside_lost_s += seconds - tokens * plain_s

    def note_reading(self, seconds: float) -> None:
        """The drafter read text."""
        lent = min(seconds, self._credit_s)
        self._credit_s -= lent
        self._lent_s += lent
        self._read_s += seconds

    def settle(self, plain_s: float, round_s: Callable[[str, int], float]) -> None:
        """Pay for what was noted, in typical times: a pause of the system costs nothing.

        Rounds pay no more than was reserved for them: what is beyond it, the processors did that became slower. What
        was noted since plain steps were timed last is reckoned again each time: plain steps may be slower now, too.

        Args:
            plain_s: of a plain step.
            round_s: (source, drafted tokens) -> seconds of a round.
        """
        if self._held_s is None:
            self._left_s = ADVANCE_STEPS * plain_s
            self._closed_s = LOSS_SHARE * self._left_s + self._more_steps * plain_s
        self._most_lost_s += self._reserved_s
        self._reserved_s = 0.0
        drafting = sum(count * round_s(*played) for played, count in self._played.items())
        passed = drafting + self._plain_rounds * plain_s + self._read_s + self._beside_s
        lost = min(drafting - self._tokens * plain_s, self._most_lost_s) + self._read_s + self._beside_lost_s
        in_advance = min(passed, self._left_s)
        self._advance_s = self._left_s - in_advance
        self._earned_s += self._share * max(0.0, passed - in_advance - self._paid_for_s)
        self._paid_for_s = max(self._paid_for_s, passed - in_advance)
        self._held_s = min(self._closed_s + self._earned_s - lost, _MOST_BANKED_STEPS * plain_s)
        if self._plain_rounds and self._tokens + self._plain_rounds > _OPEN_TOKENS:
            self._close()

    def _close(self) -> None:
        """What was noted is settled for good."""
        self._closed_s, self._left_s = self._held_s or 0.0, self._advance_s
        self._tokens, self._plain_rounds, self._read_s, self._most_lost_s = 0, 0, 0.0, 0.0
        self._beside_lost_s, self._beside_s, self._earned_s, self._paid_for_s = 0.0, 0.0, 0.0, 0.0
        self._played = {}

    def confirm(self) -> None:
        """Drafting was decided for again."""
        self._share = LOSS_SHARE

    def fail(self) -> None:
        """Drafting was given up."""
        self._share = max(_LEAST_SHARE, _BACK_OFF * self._share)
