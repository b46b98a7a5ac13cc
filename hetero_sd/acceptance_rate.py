"""The acceptance rate of drafted tokens, counted from the rounds of a run, with its 95 % interval."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from costmodel.speculative import expected_tokens
from hetero_sd.runtime.decode.stats import wilson
from targets.errors import UserError

_RESAMPLES = 1000


@dataclass(frozen=True)
class Judged:
    """Verdicts of one prompt: `seen[i]` drafts reached position i (from 0), all before accepted; `passed[i]` passed."""

    seen: tuple[int, ...]
    passed: tuple[int, ...]
    rounds: int
    tokens: int


def judge(rounds: Iterable[Any], gamma: int) -> Judged:
    """Count the verdicts of rounds (trace.Round) by position."""
    seen, passed, count, tokens = [0] * gamma, [0] * gamma, 0, 0
    for r in rounds:
        if not r.drafted:
            continue
        count, tokens = count + 1, tokens + r.accepted + 1
        for i in range(min(gamma, r.drafted, r.accepted + 1)):
            seen[i] += 1
            passed[i] += i < r.accepted
    return Judged(tuple(seen), tuple(passed), count, tokens)


def summary(prompts: Sequence[Judged], gamma: int, seed: int = 0) -> dict[str, Any]:
    """Acceptance over all positions and by position, with 95 % intervals, and what it implies.

    By position: Wilson's interval. Overall: the wider of Wilson's and a bootstrap over prompts, since the tokens of one
    prompt resemble each other.
    """
    seen = [sum(j.seen[i] for j in prompts) for i in range(gamma)]
    passed = [sum(j.passed[i] for j in prompts) for i in range(gamma)]
    known = [i for i in range(gamma) if seen[i]]
    if not known:
        raise UserError("no drafted token was judged: give longer prompts' answers (--max-new-tokens) or more prompts")
    alphas = [passed[i] / seen[i] for i in known]
    alpha = sum(passed) / sum(seen)
    low, high = wilson(sum(passed), sum(seen))
    if len(prompts) >= 5:
        boot_low, boot_high = _bootstrap(prompts, seed)
        low, high = min(low, boot_low), max(high, boot_high)
    rounds = sum(j.rounds for j in prompts)
    return {
        "alpha": alpha,
        "interval": [low, high],
        "alpha_by_position": alphas,
        "interval_by_position": [list(wilson(passed[i], seen[i])) for i in known],
        "judged_by_position": [seen[i] for i in known],
        "tokens_per_round": {
            "gamma": gamma,
            "measured": sum(j.tokens for j in prompts) / rounds,
            "by_position": expected_tokens(alphas, gamma),
            "constant_alpha": expected_tokens(alpha, gamma),
        },
        "rounds": rounds,
        "prompts": len(prompts),
    }


def _bootstrap(prompts: Sequence[Judged], seed: int) -> tuple[float, float]:
    """Percentiles 2.5 and 97.5 of the acceptance over prompts drawn with replacement."""
    rng = random.Random(seed)
    counts = [(sum(j.passed), sum(j.seen)) for j in prompts]
    found = []
    for _ in range(_RESAMPLES):
        drawn = rng.choices(counts, k=len(counts))
        seen = sum(s for _, s in drawn)
        if seen:
            found.append(sum(p for p, _ in drawn) / seen)
    found.sort()
    return found[int(0.025 * len(found))], found[int(0.975 * len(found))]
