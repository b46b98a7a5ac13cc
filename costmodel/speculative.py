"""Rounds of speculative decoding: expected tokens, expected time, and where speculation starts to pay.

Leviathan et al. 2023 (arXiv 2211.17192) and Chen et al. 2023 (arXiv 2302.01318). A round drafts gamma tokens, verifies
them in one pass of the target over gamma + 1 tokens, and yields the accepted ones and one of the target's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from costmodel.contention import Load, side_by_side, slowdowns
from targets.errors import UserError

MOST_GAMMA = 16
_ROUNDING = 1e-9  # of a step
Acceptance = float | Sequence[float]


def check_acceptance(alpha: Acceptance) -> None:
    """Refuse what is no probability.

    Raises:
        UserError: a value outside [0, 1], or an empty list.
    """
    values = [alpha] if isinstance(alpha, (int, float)) else list(alpha)
    if not values:
        raise UserError("the acceptance has no positions; give at least one probability")
    for value in values:
        if not 0.0 <= value <= 1.0:
            raise UserError(f"acceptance {value:g} is not a probability; it must lie between 0 and 1")


def at_position(alpha: Acceptance, position: int) -> float:
    """Probability that token `position` (from 1) is accepted when those before it were; the last one repeats."""
    if isinstance(alpha, (int, float)):
        return float(alpha)
    return float(alpha[min(position, len(alpha)) - 1])


def all_accepted(alpha: Acceptance, count: int) -> float:
    """Probability that the first `count` tokens are all accepted: the product of their acceptances."""
    product = 1.0
    for position in range(1, count + 1):
        product *= at_position(alpha, position)
    return product


def expected_tokens(alpha: Acceptance, gamma: int) -> float:
    """Tokens a round yields: E = 1 + sum over k = 1..gamma of the product of the first k acceptances.

    For a constant alpha that is (1 - alpha^(gamma + 1)) / (1 - alpha), and gamma + 1 at alpha = 1.
    """
    expected, product = 1.0, 1.0
    for position in range(1, gamma + 1):
        product *= at_position(alpha, position)
        expected += product
    return expected


def acceptance_rate(alpha: Acceptance, gamma: int) -> float:
    """The share of judged tokens that is accepted, as runs measure it: a rejection ends a round's judging."""
    accepted = expected_tokens(alpha, gamma) - 1
    judged = accepted + 1 - all_accepted(alpha, gamma)
    return accepted / judged if judged else 1.0


@dataclass(frozen=True)
class RoundCosts:
    """Seconds of the parts of a round.

    Attributes:
        draft_s: a step of the drafter with one new token; 0 for n-gram drafting, which looks up what it has seen.
        draft_two_s: its first step after full acceptance, when it has two tokens to take in.
        verify_s: n -> a step of the target with n new tokens.
        dispatch_s: the loop around a round, and the hand-over of token ids between processors.
        turn_s: what the loop takes longer in a round that drafts.
        sampling_s: rows -> choosing tokens for that many rows of logits (0 when greedy: part of the step).
        transfer_s: drafted tokens -> moving what the target needs of the drafter (ids only when greedy).
        drafts_s: gamma -> steps of the drafter in a row, where caches make later ones shorter; None: all take draft_s.
    """

    draft_s: float
    draft_two_s: float
    verify_s: Callable[[int], float]
    dispatch_s: float = 0.0
    sampling_s: Callable[[int], float] = lambda rows: 0.0
    transfer_s: Callable[[int], float] = lambda tokens: 0.0
    drafts_s: Callable[[int], float] | None = None
    turn_s: float = 0.0


@dataclass(frozen=True)
class Round:
    """An expected round.

    Attributes:
        gamma: drafted tokens.
        tokens: expected tokens.
        draft_s, verify_s, other_s: expected seconds by part; other is dispatch, sampling and transfer.
        time_s: expected seconds in all; below the sum where parts overlap.
    """

    gamma: int
    tokens: float
    draft_s: float
    verify_s: float
    other_s: float
    time_s: float

    @property
    def tokens_per_s(self) -> float:
        """Expected speed of a long text: tokens over time, both means over rounds (renewal reward)."""
        return self.tokens / self.time_s


def sequential_round(alpha: Acceptance, gamma: int, costs: RoundCosts) -> Round:
    """One after the other: T = gamma t_D + T_T(gamma + 1) + transfer + dispatch + sampling.

    After full acceptance the drafter has not seen its own last token: its next first step takes in two.
    """
    full = all_accepted(alpha, gamma) if gamma else 0.0
    draft = gamma * costs.draft_s if costs.drafts_s is None else costs.drafts_s(gamma)
    draft += full * (costs.draft_two_s - costs.draft_s)
    verify = costs.verify_s(gamma + 1)
    other = costs.dispatch_s + costs.sampling_s(gamma + 1)
    other += costs.turn_s + costs.transfer_s(gamma) if gamma else 0.0
    return Round(gamma, expected_tokens(alpha, gamma), draft, verify, other, draft + verify + other)


def overlapped_round(
    alpha: Acceptance,
    gamma: int,
    draft: Load,
    verify: Load,
    other_s: float,
    limit_bytes_per_s: float,
    hand_over_s: float = 0.0,
) -> Round:
    """The drafter works on the next round while the target verifies this one, on another processor.

    It bets that all gamma tokens are accepted and that its own next guess is the target's extra token, so it drafts
    gamma + 1 tokens meanwhile: the guess and gamma after it. The bet holds with probability
    P = product of the first gamma + 1 acceptances, which are those of each position where they were measured: a drafter
    that was right is right more often (0.25 after four tokens where alpha^4 is 0.17). Then the next verification starts
    when both are done. Otherwise it ends the running step, learns of the miss, and drafts gamma tokens from the
    corrected text.

        T = P max(V', D') + (1 - P) (V' + r + h + gamma t_D) + other

    V' and D' are the times side by side, with both reading DRAM (contention.py); on a miss the drafter has kept the
    memory busy until the verification ended, or until it was done. Both begin a round together, so the rest r of the
    running step is not half a step on average but what ceil(V' / t'_D) steps take beyond V', at the speed of a drafter
    alone. That is for rounds that wait for all drafts, of a long text.

    Args:
        alpha: acceptance.
        gamma: drafted tokens, at least 1.
        draft: one step of the drafter alone.
        verify: the target's step of gamma + 1 tokens alone.
        other_s: dispatch, sampling and transfers of a round.
        limit_bytes_per_s: what both read from DRAM together.
        hand_over_s: h, until the drafter knows of a miss, and the target has the drafts after it.
    """
    hit = all_accepted(alpha, gamma + 1)
    verified, drafted = side_by_side(verify, draft * (gamma + 1), limit_bytes_per_s)
    running = 0.0
    if drafted > verified:
        steps = verified / (draft.total_s * slowdowns(draft, verify, limit_bytes_per_s)[0])
        running = (math.ceil(steps - _ROUNDING) - min(steps, math.ceil(steps - _ROUNDING))) * draft.total_s
    miss_draft, other = gamma * draft.total_s + running, other_s + (1 - hit) * hand_over_s
    time = hit * max(verified, drafted) + (1 - hit) * (verified + miss_draft) + other
    return Round(gamma, expected_tokens(alpha, gamma), (1 - hit) * miss_draft, verified, other, time)


def ngram_round(match: float, drafted: Round, plain: Round) -> Round:
    """A round that drafts where the text has a match and is a plain step elsewhere; both means over rounds.

    tokens/s = ((1 - m) + m E) / ((1 - m) T(1) + m T(gamma + 1)), m the share of rounds with a match.
    """

    def mean(name: str) -> float:
        return (1 - match) * float(getattr(plain, name)) + match * float(getattr(drafted, name))

    return Round(drafted.gamma, *(mean(name) for name in ("tokens", "draft_s", "verify_s", "other_s", "time_s")))


def speedup(alpha: float, gamma: int, c: float, verify_slope: float = 0.0) -> float:
    """S = E / (gamma c + 1 + slope gamma), with c = t_D / T_T(1) and T_T(n) = T_T(1) (1 + slope (n - 1)).

    With slope 0 this is the formula of Leviathan et al. 2023, theorem 3.8.
    """
    return expected_tokens(alpha, gamma) / (gamma * c + 1.0 + verify_slope * gamma)


def break_even_alpha(gain: Callable[[float], float]) -> float | None:
    """The smallest acceptance with gain(alpha) >= 1, for a gain that rises with alpha; None if 1 never is enough."""
    if gain(1.0) < 1.0:
        return None
    if gain(0.0) >= 1.0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if gain(middle) >= 1.0 else (middle, high)
    return high


def break_even_c(alpha: float, gamma: int, verify_slope: float = 0.0) -> float:
    """The largest t_D / T_T(1) at which gamma drafted tokens still pay: c = (E - 1) / gamma - slope."""
    return (expected_tokens(alpha, gamma) - 1.0) / gamma - verify_slope


def break_even_slope(alpha: float, gamma: int, c: float) -> float:
    """The largest rise of T_T(n) a token, over T_T(1), at which gamma drafts still pay: (E - 1) / gamma - c."""
    return (expected_tokens(alpha, gamma) - 1.0) / gamma - c
