"""How many tokens to draft in a round. Any choice gives the same greedy text and the same law of samples."""

from __future__ import annotations

from typing import Protocol

from costmodel.schema.plan import Plan
from costmodel.speculative import MOST_GAMMA
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.trace import Round

_DEFAULT_GAMMA = 4


class GammaPolicy(Protocol):
    """Decides, before each round, how many tokens to draft."""

    def begin(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Start a text; the drafter has not read its prompt."""

    def gamma(self) -> int:
        """Return the number of tokens to draft in the next round; 0 is a plain decoding step."""

    def observe(self, finished: Round) -> None:
        """Learn from a finished round."""


class FixedGamma:
    """The same gamma in every round."""

    def __init__(self, gamma: int) -> None:
        """Keep ``gamma`` >= 0."""
        self._gamma = gamma

    def begin(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Ignore the text."""

    def gamma(self) -> int:
        """Return the fixed number."""
        return self._gamma

    def observe(self, finished: Round) -> None:
        """Ignore the round."""


def choose_policy(mode: str, gamma: int | None, plan: Plan | None) -> GammaPolicy | None:
    """Return the policy for a bundle that has a drafter; None is the target alone.

    Args:
        mode: "auto", "target-only" or "speculative", as the user gave it. Auto decides anew while it runs, from the
            plan's predictions; where the plan has none, or its draft length was given, it does what the plan says.
        gamma: the user's choice, or None for the plan's.
        plan: the bundle's, or None.
    """
    if mode == "target-only":
        return None
    if gamma is not None:
        return FixedGamma(gamma)
    planned = 0 if plan is None else plan.gamma
    if mode == "speculative":
        return FixedGamma(planned or _DEFAULT_GAMMA)
    live = None if plan is None or "gamma" in plan.given else plan.prediction.live
    if live is not None:
        return LiveGamma(live, [width - 1 for width in live.verify_s if width <= MOST_GAMMA + 1])
    return FixedGamma(planned) if planned else None
