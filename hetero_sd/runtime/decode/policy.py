"""How many tokens to draft in a round. Any choice gives the same greedy text and the same law of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from hetero_sd.runtime.decode.live_gamma import LiveGamma, Predicted
from hetero_sd.runtime.decode.trace import Round

_DEFAULT_GAMMA = 4
MOST_GAMMA = 16


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


def choose_policy(mode: str, gamma: int | None, plan: Mapping[str, Any]) -> GammaPolicy | None:
    """Return the policy for a bundle that has a drafter; None is the target alone.

    Args:
        mode: "auto", "target-only" or "speculative", as the user gave it. Auto decides anew while it runs, from the
            plan's predictions; where the plan has none, or its draft length was given, it does what the plan says.
        gamma: the user's choice, or None for the plan's.
        plan: the bundle's; ``mode``, ``gamma``, ``given`` and ``prediction`` are read.
    """
    if mode == "target-only":
        return None
    if gamma is not None:
        return FixedGamma(gamma)
    planned = plan.get("gamma")
    planned = planned if type(planned) is int and planned > 0 else 0
    if mode == "speculative":
        return FixedGamma(planned or _DEFAULT_GAMMA)
    given = plan.get("given")
    live = None if isinstance(given, list) and "gamma" in given else read_predicted(plan)
    if live is not None:
        return LiveGamma(live, [width - 1 for width in live.verify_s if width <= MOST_GAMMA + 1])
    return FixedGamma(planned) if planned and plan.get("mode") != "target-only" else None


def read_predicted(plan: Mapping[str, Any]) -> Predicted | None:
    """Return what a plan predicts for live decisions, ``prediction.live``; None where it is missing or no use."""
    try:
        live = plan["prediction"]["live"]
        verify = {int(width): _positive(seconds) for width, seconds in live["verify_s"].items()}
        alpha, chunk = live["alpha"], live["chunk"]
        if not 0 <= float(alpha) <= 1 or not 1 <= int(chunk) <= 1 << 20 or 1 not in verify or len(verify) > 64:
            return None
        times = [_positive(live[name]) for name in ("draft_s", "round_s", "chunk_s")]
        return Predicted(float(alpha), times[0], dict(sorted(verify.items())), times[1], times[2], int(chunk))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _positive(value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError("not a time")
    return number
