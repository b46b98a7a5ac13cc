"""Speeds that differ by less than the model is sure of: the variant whose prediction is surer is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from costmodel.question import Decision, Variant, why_not
from costmodel.schema.plan import OVERLAPPED, TARGET_ONLY
from costmodel.uncertainty import Interval

TIE_SHARE = 0.1  # variants whose speeds differ by no more may be a tie
_SURER = 0.9  # an interval that is narrower by less is as sure
LEAST_GAIN = 1.02  # of drafting over the target alone, as of live draft lengths to begin, and of any second processor


def settle_ties(decision: Decision, interval_of: Callable[[Variant], Interval]) -> Decision:
    """Take the surest of the variants that tie with the fastest, and say so.

    A tie: at most TIE_SHARE slower, and each inside the interval of the other. The surer one has the narrower interval;
    it must be narrower by a tenth, else the fastest stays. Where the target alone is the fastest, nothing that drafts
    ties with it: that takes more memory, and rests on an acceptance as well. What gains less than 2 % on something
    simpler is not worth its drafter, its second processor or its borders, whatever the intervals.
    Overlapped rounds are never the surer ones: what two processors do to each other was measured on no board.
    """
    first = decision.best
    near = [
        v
        for v in decision.leading
        if v.tokens_per_s >= (1 - TIE_SHARE) * first.tokens_per_s and (v is first or v.mode != OVERLAPPED)
    ]
    if first.mode == TARGET_ONLY:
        near = [v for v in near if v.mode == TARGET_ONLY]
    enough = [v for v in near if first.tokens_per_s < LEAST_GAIN * v.tokens_per_s and _simpler(v, first)]
    if enough:
        simplest = min(enough, key=_needs)
        gain = f"{100 * (first.tokens_per_s / simplest.tokens_per_s - 1):.1f} %"
        if simplest.mode == TARGET_ONLY != first.mode:
            why = f"{gain} faster than the target alone: too little to draft for"
            return _taken(decision, simplest, f"chosen: drafting ({first.mode}) would gain {gain}", why)
        why = f"{gain} faster than the chosen one: too little for another processor"
        return _taken(decision, simplest, f"chosen: another processor would gain {gain}", why)
    if len(near) == 1:
        return decision
    sure, intervals = interval_of(first), [interval_of(v) for v in near]
    tied = [
        (own.high / own.low, i)
        for i, (v, own) in enumerate(zip(near, intervals, strict=True))
        if own.low <= first.tokens_per_s <= own.high and sure.low <= v.tokens_per_s <= sure.high
    ]
    width, chosen = min(tied)
    if chosen == 0 or width > _SURER * sure.high / sure.low:
        return decision
    speed = f"{first.tokens_per_s:.2f} tokens/s ({sure.low:.2f} to {sure.high:.2f})"
    why = "a tie with the chosen one, which is surer"
    return _taken(decision, near[chosen], f"chosen: a tie with {first.mode} at {speed}, and the surer of the two", why)


def _needs(variant: Variant) -> tuple[int, int, int]:
    """Whether it drafts, its kinds of processors, its segments."""
    placements = [p for p in (variant.target_placement, variant.draft_placement) if p is not None]
    families = [family for p in placements for family in p.families]
    return int(variant.mode != TARGET_ONLY), len(set(families)), len(families)


def _simpler(variant: Variant, other: Variant) -> bool:
    """Whether it is the target alone where the other drafts, or needs no more of anything and less of something."""
    own, others = _needs(variant), _needs(other)
    return own[0] < others[0] or (own != others and all(a <= b for a, b in zip(own, others, strict=True)))


def end_of_tie(decision: Decision) -> float:
    """How much faster than the chosen variant the one that ties with it must be to be chosen."""
    tied = decision.tied
    if tied is None:
        return 1.0
    little = tied.tokens_per_s < LEAST_GAIN * decision.best.tokens_per_s and _simpler(decision.best, tied)
    return LEAST_GAIN if little else 1 / (1 - TIE_SHARE)


def _taken(decision: Decision, chosen: Variant, reason: str, why_not_first: str) -> Decision:
    """The decision with another variant than the fastest."""
    first, best = decision.best, replace(chosen, reason=reason)
    others = [replace(first, reason=why_not_first)]
    others += [replace(v, reason=_why_not(v, best)) for v in decision.leading if v is not first and v is not chosen]
    return replace(decision, best=best, leading=(best, *others), tied=first)


def _why_not(variant: Variant, best: Variant) -> str:
    gain = f"{100 * (variant.tokens_per_s / best.tokens_per_s - 1):.0f}"
    if variant.tokens_per_s > best.tokens_per_s:
        return f"{gain} % faster than the chosen one, but less sure" if gain != "0" else "as fast, but less sure"
    return why_not(variant, best)
