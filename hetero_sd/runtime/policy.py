"""How many tokens to draft in a round. Any choice gives the same greedy text and the same law of samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from hetero_sd.runtime.trace import Round

_DEFAULT_GAMMA = 4


class GammaPolicy(Protocol):
    """Decides, before each round, how many tokens to draft."""

    def gamma(self) -> int:
        """Return the number of tokens to draft in the next round; 0 is a plain decoding step."""

    def observe(self, finished: Round) -> None:
        """Learn from a finished round."""


class FixedGamma:
    """The same gamma in every round."""

    def __init__(self, gamma: int) -> None:
        """Keep ``gamma`` >= 0."""
        self._gamma = gamma

    def gamma(self) -> int:
        """Return the fixed number."""
        return self._gamma

    def observe(self, finished: Round) -> None:
        """Ignore the round."""


def choose_policy(mode: str, gamma: int | None, plan: Mapping[str, Any]) -> GammaPolicy | None:
    """Return the policy for a bundle that has a drafter; None is the target alone.

    Args:
        mode: "auto" (what the plan says), "target-only" or "speculative", as the user gave it.
        gamma: the user's choice, or None for the plan's.
        plan: the bundle's; ``mode`` and ``gamma`` are read.
    """
    if mode == "target-only":
        return None
    if gamma is not None:
        return FixedGamma(gamma)
    planned = plan.get("gamma")
    planned = planned if type(planned) is int and planned > 0 else 0
    if mode == "speculative":
        return FixedGamma(planned or _DEFAULT_GAMMA)
    return FixedGamma(planned) if planned and plan.get("mode") != "target-only" else None
