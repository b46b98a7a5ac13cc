"""Which policy a run takes, from the options and the plan."""

from __future__ import annotations

from costmodel.schema.plan import Plan
from costmodel.speculative import MOST_GAMMA
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.policy import FixedGamma, GammaPolicy

_DEFAULT_GAMMA = 4


def choose_policy(mode: str, gamma: int | None, plan: Plan | None) -> GammaPolicy | None:
    """Return the policy for a bundle that has a drafter; None is the target alone.

    Args:
        mode: "auto", "target-only" or "speculative", as the user gave it. Auto starts from the plan's draft length and
            decides anew while it runs, from the plan's predictions and what it measures; where the plan has no
            predictions it does what the plan says.
        gamma: the user's choice, which fixes it, or None.
        plan: the bundle's, or None.
    """
    if mode == "target-only":
        return None
    if gamma is not None:
        return FixedGamma(gamma)
    planned = 0 if plan is None else plan.gamma
    if mode == "speculative":
        return FixedGamma(planned or _DEFAULT_GAMMA)
    live = None if plan is None else plan.prediction.live
    if plan is not None and live is not None:
        gammas = [width - 1 for width in live.verify_s if width <= MOST_GAMMA + 1]
        return LiveGamma(live, gammas, planned, plan.draft_widths[-1])
    return FixedGamma(planned) if planned else None
