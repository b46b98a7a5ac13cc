"""Which policy a run takes, from the options and the plan."""

from __future__ import annotations

from costmodel.schema.plan import OVERLAPPED, Plan
from costmodel.schema.prediction import LivePrediction
from costmodel.speculative import MOST_GAMMA
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.policy import FixedGamma, GammaPolicy

NGRAM = "ngram"
DRAFTERS = (MODEL, NGRAM, f"{MODEL}+{NGRAM}")
AUTO, OFF = "auto", "off"
ALONE = (OFF, "target-only")  # the modes in which nothing is drafted
STOP_DRAFTS = (AUTO, OFF)
_DEFAULT_GAMMA = 4
_NOTHING_S = 1e-9


def choose_policy(
    mode: str,
    gamma: int | None,
    plan: Plan | None,
    drafter: str = MODEL,
    repeatable: bool = False,
    stop_drafts: str = AUTO,
) -> GammaPolicy | None:
    """Return the policy for a run that has a drafter; None is the target alone.

    Args:
        mode: "auto", "target-only" or "speculative", as the user gave it. Auto starts from the plan's draft length and
            decides anew while it runs, from the plan's predictions and what it measures; where the plan has no
            predictions it does what the plan says.
        gamma: the user's choice, which fixes it, or None.
        plan: the bundle's, or None.
        drafter: one of :data:`DRAFTERS`.
        repeatable: nothing may be decided from times, because sampled tokens depend on what was drafted.
        stop_drafts: one of :data:`STOP_DRAFTS`: whether drafts may end by the drafter's confidence, where the draft
            length follows the run.
    """
    if mode == "target-only":
        return None
    if gamma is not None:
        return FixedGamma(gamma)
    with_model = MODEL in drafter.split("+")
    planned = plan.gamma if plan is not None and with_model else 0
    if mode == "speculative":
        return FixedGamma(planned or _DEFAULT_GAMMA)
    live = None if plan is None or repeatable else plan.prediction.live if with_model else _without_model(plan)
    if plan is not None and live is not None:
        gammas = [width - 1 for width in live.verify_s if width <= MOST_GAMMA + 1]
        return LiveGamma(live, gammas, planned, plan.draft_widths[-1], stop_drafts == AUTO, drafter == MODEL)
    if not with_model:
        return FixedGamma(_DEFAULT_GAMMA)
    return FixedGamma(planned) if planned else None


def plans_overlap(mode: str, plan: Plan | None, drafter: str = MODEL) -> bool:
    """Whether a run drafts while the target verifies: told to, or by the plan where nothing else was said."""
    return mode == OVERLAPPED or (mode == "auto" and plan is not None and plan.mode == OVERLAPPED and drafter == MODEL)


def fixed_gamma(gamma: int | None, plan: Plan | None) -> int:
    """The draft length where it does not follow the run: the user's, the plan's, or 4."""
    return gamma or (plan.gamma if plan is not None else 0) or _DEFAULT_GAMMA


def _without_model(plan: Plan) -> LivePrediction | None:
    """What live decisions start from where no model drafts; None where the plan does not say what a step costs."""
    steps = {width: plan.prediction.verify_step_s.get(width, 0.0) for width in plan.target_widths}
    if not all(steps.values()):
        return None
    return LivePrediction(0.0, _NOTHING_S, steps, max(plan.prediction.dispatch_s, _NOTHING_S), _NOTHING_S, 1)
