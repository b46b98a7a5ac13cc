"""Overlapped rounds in which the target waits for fewer drafts than it could verify, down to none.

With `least` = 0 the target starts at once after a miss, on its own token alone, and what the drafter makes meanwhile is
judged when it ends (pre-verification, PEARL, arXiv 2408.11850). How many drafts a round verifies then depends on how
long ago the last miss was and on where in its running step that met the drafter. Between two misses nothing is random:
the rounds after a miss are walked one by one, as if all went well, each with the chance that it still does. What is
random from one miss to the next is the rest of the drafter's running step, which is kept in a few classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from costmodel.contention import Load, slowdowns
from costmodel.speculative import Acceptance, Round, at_position

_CLASSES = 5  # of the rest of a running step: 0, a quarter, ... all of it; what lies between counts for both
_TURNS = 8  # of its distribution, until it stays the same
_MOST_ROUNDS, _LEAST_CHANCE = 100, 1e-3  # that are walked from one miss on


class _Sums(NamedTuple):
    """Expected sums over the rounds from one miss to the next."""

    rounds: float
    tokens: float
    wait_s: float
    verify_s: float
    time_s: float


def early_round(
    alpha: Acceptance,
    gamma: int,
    least: int,
    draft: Load,
    verify: Callable[[int], Load],
    other_s: float,
    limit_bytes_per_s: float,
    hand_over_s: float = 0.0,
) -> Round:
    """The mean round of a long text; with `least` = `gamma` it is what `overlapped_round` gives in closed form.

    Args:
        alpha: acceptance; by position, it is that of the tokens since the last miss.
        gamma: drafts that are verified at a time, at most; at least 1.
        least: drafts that the target waits for, 0 to gamma.
        draft: one step of the drafter alone.
        verify: n -> the target's step of n tokens alone.
        other_s: dispatch, sampling and transfers of a round.
        limit_bytes_per_s: what both read from DRAM together.
        hand_over_s: until the drafter knows of a miss.
    """
    walk = _Walk(alpha, gamma, least, draft, verify, other_s, limit_bytes_per_s, hand_over_s)
    walked = [walk.from_miss(i / (_CLASSES - 1) * draft.total_s) for i in range(_CLASSES)]
    share = [1.0 / _CLASSES] * _CLASSES
    for _ in range(_TURNS):
        share = [sum(share[i] * walked[i][1][j] for i in range(_CLASSES)) for j in range(_CLASSES)]
    mean = _Sums(*(sum(part * sums[i] for part, (sums, _) in zip(share, walked, strict=True)) for i in range(5)))
    tokens, wait, verified, time = (value / mean.rounds for value in mean[1:])
    return Round(gamma, tokens, wait, verified, other_s, time)


class _Walk:
    """The rounds after a miss, as long as nothing is rejected."""

    def __init__(
        self,
        alpha: Acceptance,
        gamma: int,
        least: int,
        draft: Load,
        verify: Callable[[int], Load],
        other_s: float,
        limit_bytes_per_s: float,
        hand_over_s: float,
    ) -> None:
        self._alpha, self._gamma, self._least, self._other, self._hand_over = alpha, gamma, least, other_s, hand_over_s
        self._step, self._verify, self._draft, self._limit = draft.total_s, verify, draft, limit_bytes_per_s
        self._beside: dict[int, tuple[float, float, float]] = {}
        self._lead = 2 * gamma + 1  # drafts that the runtime's drafter may be ahead of the text

    def _steps(self, drafts: int) -> tuple[float, float, float]:
        """The target's step alone; a step of each while the other one runs."""
        if drafts not in self._beside:
            step = self._verify(drafts + 1)
            slow_draft, slow_verify = slowdowns(self._draft, step, self._limit)
            self._beside[drafts] = step.total_s, step.total_s * slow_verify, self._step * slow_draft
        return self._beside[drafts]

    def from_miss(self, rest_s: float) -> tuple[_Sums, list[float]]:
        """Sums until the next miss, `rest_s` being left of the drafter's step; the next rest's share of each class."""
        classes, chance = [0.0] * _CLASSES, 1.0
        rounds = produced = waiting = verifying = time = 0.0
        certain = made = 0  # tokens since the miss: of the text, and of the drafter
        now, ends = 0.0, rest_s + self._hand_over + self._step  # the drafter's running step ends; infinite: idle
        for _ in range(_MOST_ROUNDS):
            begin = now
            lacking = min(self._least, self._gamma) - (made - certain)
            if lacking > 0:
                now = max(now, ends + (lacking - 1) * self._step)
                made, ends = self._drafted(made, ends, now, self._step, certain)
            drafts = min(self._gamma, made - certain)
            alone, beside, step = self._steps(drafts)
            free = max(0.0, ends - now) + max(0, certain + self._lead - made - 1) * step if ends < float("inf") else 0.0
            took = beside if free >= beside else free + (beside - free) * alone / beside
            waited, now = now - begin, now + took + self._other
            made, ends = self._drafted(made, ends, now, step, certain)
            tokens, through = 1.0, 1.0
            for position in range(certain + 1, certain + drafts + 1):
                through *= at_position(self._alpha, position)
                tokens += through
            through *= at_position(self._alpha, certain + drafts + 1)  # the guess of the target's own token
            rounds, produced, time = rounds + chance, produced + chance * tokens, time + chance * (now - begin)
            waiting, verifying = waiting + chance * waited, verifying + chance * took
            at = (_CLASSES - 1) * min(1.0, (ends - now) / self._step) if ends < float("inf") else 0.0
            low = min(_CLASSES - 2, int(at))
            classes[low] += chance * (1 - through) * (low + 1 - at)
            classes[low + 1] += chance * (1 - through) * (at - low)
            chance *= through
            certain += drafts + 1
            made = max(made, certain)  # where the guess is still being made, it counts as made
            if ends == float("inf") and made - certain < self._lead:
                ends = now + self._hand_over + self._step
            if chance < _LEAST_CHANCE:
                break
        classes[0] += chance
        return _Sums(rounds, produced, waiting, verifying, time), classes

    def _drafted(self, made: int, ends: float, until: float, step: float, certain: int) -> tuple[int, float]:
        """What is made at a time, and when the running step ends; the drafter stops where it is too far ahead."""
        if ends > until:
            return made, ends
        steps = 1 + int((until - ends) / step + 1e-9)
        if made + steps >= certain + self._lead:
            return certain + self._lead, float("inf")
        return made + steps, ends + steps * step
