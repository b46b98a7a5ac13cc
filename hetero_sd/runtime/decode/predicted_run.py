"""What a plan's steps predict for texts as they were asked for: their lengths, and the draft length that was run."""

from __future__ import annotations

from collections.abc import Sequence

from costmodel.schema.plan import Plan
from hetero_sd.runtime.decode.trace import Trace


def predicted_speed(plan: Plan, traces: Sequence[Trace], gamma: int) -> float | None:
    """Tokens per second after the first token of texts as long as these, with `gamma` drafted tokens in every round.

    The plan's speed is that of a long text; of a short one the last round yields more than is needed, and the first
    ones take longer. None where the plan does not price such a round, or no text has two tokens.
    """
    prediction = plan.prediction
    verify = prediction.verify_step_s.get(gamma + 1)
    live = prediction.live
    alpha = (
        prediction.acceptance_rate if prediction.acceptance_rate is not None else None if live is None else live.alpha
    )
    if not verify or (gamma and (not prediction.draft_step_s or alpha is None)):
        return None
    round_s = gamma * (prediction.draft_step_s or 0.0) + verify + prediction.sampling_s + prediction.dispatch_s
    round_s += prediction.turn_s if gamma else 0.0
    lengths = [n for trace in traces if (n := len(trace.token_ids) - 1) > 0]
    needed = expected_rounds(max([0, *lengths]), alpha or 0.0, gamma)
    rounds, start_s = sum(needed[n] for n in lengths), prediction.turn_start_s if gamma else prediction.start_s
    return sum(lengths) / (rounds * round_s + len(lengths) * start_s) if rounds else None


def expected_rounds(most: int, alpha: float, gamma: int) -> list[float]:
    """Expected rounds until 0, 1, ... `most` tokens are there, each drafted one accepted with probability alpha.

    A round of k tokens leaves n - k to do: r(n) = 1 + sum over k of P(k) r(n - k), r of less than 1 being 0.
    """
    chances = [*(alpha**k * (1 - alpha) for k in range(gamma)), alpha**gamma]  # of 1, 2, ... gamma + 1 tokens
    needed = [0.0]
    for n in range(1, most + 1):
        needed.append(1.0 + sum(p * needed[max(0, n - k)] for k, p in enumerate(chances, 1)))
    return needed


def predicted_first_token_s(plan: Plan, trace: Trace) -> float:
    """Seconds from a prompt to its first token, with what the drafter read before it was shown."""
    prediction = plan.prediction
    seconds = prediction.first_token_s(trace.prompt_tokens - trace.kept_tokens, plan.prefill_width)
    if trace.read_first and prediction.live is not None:
        seconds += prediction.live.chunk_s * -(-trace.read_first // prediction.live.chunk)
    return seconds
