"""Speeds that differ by less than the model is sure of: the variant whose prediction is surer is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from costmodel.question import Decision, Variant, why_not
from costmodel.schema.plan import OVERLAPPED, TARGET_ONLY
from costmodel.uncertainty import Interval

TIE_SHARE = 0.1  # variants whose speeds differ by no more may be a tie
_SURER = 0.9  # an interval that is narrower by less is as sure
_LEAST_GAIN = 1.02  # of drafting over the target alone; live draft lengths ask for as much to begin


def settle_ties(decision: Decision, interval_of: Callable[[Variant], Interval]) -> Decision:
    """Take the surest of the variants that tie with the fastest, and say so.

    A tie: at most TIE_SHARE slower, and each inside the interval of the other. The surer one has the narrower interval;
    it must be narrower by a tenth, else the fastest stays. Where the target alone is the fastest, or what drafts gains
    less than 2 % on it, nothing that drafts ties with it: that takes more memory, and rests on an acceptance as well.
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
    alone = next((i for i, v in enumerate(near) if v.mode == TARGET_ONLY), None)
    if alone and first.tokens_per_s < _LEAST_GAIN * near[alone].tokens_per_s:
        gain = f"{100 * (first.tokens_per_s / near[alone].tokens_per_s - 1):.1f} %"
        why = f"{gain} faster than the target alone: too little to draft for"
        return _taken(decision, near[alone], f"chosen: drafting ({first.mode}) would gain {gain}", why)
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


def _taken(decision: Decision, chosen: Variant, reason: str, why_not_first: str) -> Decision:
    """The decision with another variant than the fastest."""
    first, best = decision.best, replace(chosen, reason=reason)
    others = [replace(first, reason=why_not_first)]
    others += [replace(v, reason=_why_not(v, best)) for v in decision.leading if v is not first and v is not chosen]
    return replace(decision, best=best, leading=(best, *others), tied=first)


def _why_not(variant: Variant, best: Variant) -> str:
    if variant.tokens_per_s > best.tokens_per_s:
        return f"{100 * (variant.tokens_per_s / best.tokens_per_s - 1):.0f} % faster than the chosen one, but less sure"
    return why_not(variant, best)
