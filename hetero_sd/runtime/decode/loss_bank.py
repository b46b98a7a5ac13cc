"""How much time drafting may lose against the target alone, and what it lost or gained so far.

It holds 3 steps of the target at first and grows by 1.5 % of the time that passes, by half of that where tries fail
again and again. Drafting that loses is paid from it, drafting that gains fills it.
"""

from __future__ import annotations

from collections.abc import Callable

ALLOWANCE_STEPS = 3.0  # steps of the target that may be lost before anything was gained
LOSS_SHARE = 0.015  # of the time, that may be lost on top
_LEAST_SHARE, _BACK_OFF = 0.0075, 0.9  # every try that fails makes that share smaller, until one gains
_MOST_BANKED_STEPS = 16.0
_MOST_DEBT_STEPS = 8.0  # at the start of a text


class LossBank:
    """Seconds that may be lost; rounds are noted as they happen and paid for when they are settled.

    Attributes:
        floor_s: what the bank may fall to: below 0 by what was spent on reading that is to be repaid.
    """

    def __init__(self) -> None:
        """Nothing happened yet."""
        self.floor_s = 0.0
        self._held_s: float | None = None
        self._share = LOSS_SHARE
        self._tokens, self._plain_rounds, self._read_s = 0, 0, 0.0  # since the last settlement
        self._played: dict[tuple[str, int], int] = {}  # rounds since then, by source and drafted tokens

    @property
    def held_s(self) -> float:
        """What may be lost, at the last settlement."""
        return self._held_s or 0.0

    def begin(self, plain_s: float, round_s: Callable[[str, int], float]) -> None:
        """A new text: debts of the one before are forgotten in part. The arguments are those of `settle`."""
        self.floor_s = 0.0
        if self._held_s is not None:
            self.settle(plain_s, round_s)
            self._held_s = max(self._held_s, -_MOST_DEBT_STEPS * plain_s)

    def note_plain(self) -> None:
        """A plain step was made."""
        self._plain_rounds += 1

    def note_drafted(self, source: str, gamma: int, tokens: int) -> None:
        """A round drafted and gave some tokens."""
        self._played[source, gamma] = self._played.get((source, gamma), 0) + 1
        self._tokens += tokens

    def note_reading(self, seconds: float) -> None:
        """The drafter read text."""
        self._read_s += seconds

    def settle(self, plain_s: float, round_s: Callable[[str, int], float]) -> None:
        """Pay for what was noted, in typical times: a pause of the system costs nothing.

        Args:
            plain_s: of a plain step.
            round_s: (source, drafted tokens) -> seconds of a round.
        """
        drafting = sum(count * round_s(*played) for played, count in self._played.items())
        if self._held_s is None:
            self._held_s = ALLOWANCE_STEPS * plain_s
        passed = drafting + self._plain_rounds * plain_s + self._read_s
        self._held_s += self._share * passed + self._tokens * plain_s - drafting - self._read_s
        self._held_s = min(self._held_s, _MOST_BANKED_STEPS * plain_s)
        self._tokens, self._plain_rounds, self._read_s = 0, 0, 0.0
        self._played = {}

    def confirm(self) -> None:
        """Drafting was decided for again."""
        self._share = LOSS_SHARE

    def fail(self) -> None:
        """Drafting was given up."""
        self._share = max(_LEAST_SHARE, _BACK_OFF * self._share)
