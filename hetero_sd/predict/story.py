"""What the report tells of one variant that drafts, and of no other: where it pays, and how its rounds end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

from costmodel.question import Variant
from costmodel.schema.plan import OVERLAPPED
from costmodel.speculative import all_accepted, at_position, expected_tokens
from hetero_sd.predict.predict import Prediction

MOST_GAMMA = 8  # of charts; longer drafts are rarely worth it, and never drawn


@dataclass(frozen=True)
class Outcome:
    """One way for a round to end.

    Attributes:
        tokens: what it yields: those accepted, and one of the target's own.
        weight: its probability.
        first_draft_s: the drafter's first step of the next round, which takes in two tokens after full acceptance
            where the models take turns.
    """

    tokens: int
    weight: float
    first_draft_s: float


def outcomes(p: Prediction, variant: Variant) -> list[Outcome]:
    """Every way for a round to end that verifies gamma drafts, the longest first; the weights add up to 1."""
    assert variant.draft is not None
    assert variant.draft_placement is not None
    costs, gamma, alpha = p.search.costs(variant.draft), variant.gamma, p.question.alpha
    one, two = (costs.step_s(variant.draft_placement, n) for n in (1, 2))
    found = [Outcome(gamma + 1, all_accepted(alpha, gamma), two)]
    for k in reversed(range(gamma)):
        found.append(Outcome(k + 1, all_accepted(alpha, k) * (1 - at_position(alpha, k + 1)), one))
    return found


def outcome_text(p: Prediction, variant: Variant) -> str:
    """How a round ends, in words: ``3 tokens with 64 %, 2 with 16 %, 1 with 20 %``."""
    found = [f"{o.tokens}{' tokens' * (not i)} with {100 * o.weight:.0f} %" for i, o in enumerate(outcomes(p, variant))]
    return ", ".join(found)


def relative_cost(p: Prediction, variant: Variant) -> float:
    """C of the variant: a step of its drafter over a token of the baseline, the best single processor alone."""
    assert variant.draft is not None
    assert variant.draft_placement is not None
    step_s = p.search.costs(variant.draft).step_s(variant.draft_placement, 1)
    return step_s * p.decision.baseline.tokens_per_s


def gain_over_baseline(p: Prediction, variant: Variant) -> Callable[[float, float], float]:
    """(acceptance, c) -> speed over the baseline at the best draft length, with the variant's own verification.

    S = max over gamma of E / (gamma c + (T(gamma + 1) + loop) / t), t the baseline's time of a token. Of overlapped
    rounds it is that of the variant's own draft length.
    """
    if variant.mode == OVERLAPPED:
        return _gain_overlapped(p, variant)
    costs, base_s = p.search.costs(variant.target), 1 / p.decision.baseline.tokens_per_s
    other = variant.round.other_s
    verify = [(costs.step_s(variant.target_placement, g + 1) + other) / base_s for g in range(MOST_GAMMA + 1)]
    fixed = p.question.gamma
    gammas = range(1, MOST_GAMMA + 1) if fixed is None or fixed > MOST_GAMMA else (fixed,)

    def gain(alpha: float, c: float) -> float:
        return max(expected_tokens(alpha, g) / (g * c + verify[g]) for g in gammas)

    return gain


def _gain_overlapped(p: Prediction, variant: Variant) -> Callable[[float, float], float]:
    assert variant.draft is not None
    assert variant.draft_placement is not None
    here, there = (place.segments[0].processor for place in (variant.target_placement, variant.draft_placement))
    step, base = p.search.load(variant.draft, there, 1), p.decision.baseline.tokens_per_s

    @cache
    def gain(alpha: float, c: float) -> float:
        if c <= 0:
            return gain(alpha, 1e-6)
        scaled = step * (c / (step.total_s * base))
        verify = partial(p.search.load, variant.target, here)
        _, found = p.search.overlapped_round(
            variant.target, here, there, scaled, variant.gamma, alpha, verify, variant.least
        )
        return found.tokens_per_s / base

    return gain
