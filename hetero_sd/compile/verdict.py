"""The verdict of `compile`: what was decided, what the user's own choices cost, what a drafter costs in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from costmodel.question import Variant
from costmodel.schema.plan import OVERLAPPED, TARGET_ONLY
from costmodel.schema.record import R
from costmodel.unmeasured_gpu import gpu_kernels_measured, uses_gpu
from hetero_sd.predict.predict import Prediction
from hetero_sd.predict.sentences import left_out, models_of, rate, where_text


def plan_verdict(asked: Prediction, free: Prediction, given: Sequence[str], has_draft: bool, draft_bytes: int) -> str:
    """Two or three sentences, each with its number.

    Args:
        asked: the prediction with what the user gave.
        free: the plan's own.
        given: what the user gave.
        has_draft: there is a drafter.
        draft_bytes: memory that it takes; 0 where it is left out of the bundle.
    """
    best, sure = asked.decision.best, asked.intervals[0]
    speed = f"{rate(best.tokens_per_s)} tokens/s predicted ({rate(sure.low)} to {rate(sure.high)})"
    board = asked.question.board.name
    said = [f"On {board}: {describe(best)}: {speed}, {best.against_best:.2f} x the best single processor alone."]
    if uses_gpu(best) and not gpu_kernels_measured(asked.question):
        said.append("The GPU's times come from the board's numbers; none of its kernels was measured there.")
    if waiting := left_out(asked):
        said.append(waiting)
    if given:
        said.append(_override(best, free.decision.best, given))
    if has_draft and best.mode == TARGET_ONLY and "gamma" not in given:
        said.append(_not_drafting(free))
    if has_draft and best.mode == TARGET_ONLY:
        said.append(
            f"The drafter stays in the bundle and takes {1e-6 * draft_bytes:.0f} MB of memory, so that a run can turn "
            "it on when more is accepted."
            if draft_bytes
            else "The drafter is left out of the bundle: it does not fit the memory beside the target."
        )
    return " ".join(said)


def describe(variant: Variant) -> str:
    """Mode, draft length and where each model runs, in a few words."""
    where = ", ".join(f"{title} on {where_text(place, spec)}" for title, spec, place in models_of(variant))
    if variant.mode == TARGET_ONLY:
        return f"target only, {where}"
    meanwhile = f", drafting while the target verifies (least {variant.least})" if variant.mode == OVERLAPPED else ""
    return f"speculate with gamma {variant.gamma}{meanwhile}, {where}"


def rounded(record: R) -> R:
    """A record with its numbers in six digits: what a plan can mean, and the same bytes where a last digit differs."""
    return type(record).from_json(_rounded(record.to_json()))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def _override(best: Variant, own: Variant, given: Sequence[str]) -> str:
    options = " and ".join(f"--{name}" for name in given)
    if describe(best) == describe(own):
        return f"As given with {options}; the plan would have decided the same."
    ratio = own.tokens_per_s / best.tokens_per_s
    speed = f"{ratio:.2f}x faster" if ratio >= 1 else f"{ratio:.2f}x as fast and surer"
    return f"As given with {options}; the plan would have taken: {describe(own)}, predicted {speed}."


def _not_drafting(free: Prediction) -> str:
    other = free.speculative
    if other is None:
        return "Speculation does not fit the memory."
    pays = (
        f"it pays from acceptance {free.pays_from:.2f} on" if free.pays_from is not None else "at no acceptance it pays"
    )
    pay = "is a tie with it and less sure" if other.tokens_per_s > free.decision.best.tokens_per_s else "does not pay"
    return (
        f"Speculation {pay}: its best, gamma {other.gamma}, reaches {rate(other.tokens_per_s)} tokens/s at "
        f"acceptance {free.alpha_source}; {pays}."
    )
