"""What a plan's steps predict for texts as they were asked for: their lengths, and the draft length that was run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from costmodel.schema.plan import Plan
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.decode.trace import Trace

_FIRST_ROUNDS = 8  # that predict the loop of later ones
_A_CYCLE_S = 1e-9  # below it is the cycle that stands for what no calibration has measured
BY_PLAN, BY_RUN = "plan", f"the first {_FIRST_ROUNDS} rounds"


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


def predicted_time_shares(plan: Plan, traces: Sequence[Trace]) -> dict[str, float]:
    """Shares of the decoding time by the plan's steps, of rounds that drafted and read what these did.

    Named as stats.summarise names them. Empty where the plan does not price such a round, or there is none.
    """
    prediction, live = plan.prediction, plan.prediction.live
    rounds = [r for trace in traces for r in trace.rounds]
    overlap = plan.overlap if any(r.wait_s for r in rounds) else None
    seconds = dict.fromkeys(("draft", "verify", "wait", "sampling", "confidence", "dispatch", "read"), 0.0)
    for r in rounds:
        verify_s, by_model = prediction.verify_step_s.get(r.drafted + 1), r.source == MODEL
        if verify_s is None or (by_model and prediction.draft_step_s is None) or (r.read and live is None):
            return {}
        seconds["verify"] += verify_s
        seconds["sampling"] += prediction.sampling_s
        seconds["confidence"] += len(r.confidences) * prediction.confidence_s
        seconds["dispatch"] += prediction.dispatch_s + (prediction.turn_s if r.drafted else 0.0)
        seconds["wait"] += 0.0 if overlap is None else overlap.wait_s
        if by_model and overlap is None:
            seconds["draft"] += r.drafted * (prediction.draft_step_s or 0.0)
        seconds["read"] += 0.0 if live is None else live.chunk_s * -(-r.read // live.chunk)
    whole = sum(seconds.values())
    return {term: spent / whole for term, spent in seconds.items()} if whole > 0 else {}


def predicted_loop_s(plan: Plan, traces: Sequence[Trace]) -> tuple[float | None, str]:
    """Seconds of a round's loop without what the policy decides, and what says so: the plan, or the run itself.

    A plan whose board was calibrated without a drafter knows the loop of the target alone; then the loop of rounds that
    draft is predicted from the first ones of the run, of which there must be twice as many; else it is None.
    """
    prediction, rounds = plan.prediction, [r for trace in traces for r in trace.rounds]
    if not any(r.drafted for r in rounds):
        return prediction.dispatch_s, BY_PLAN
    if prediction.turn_s > _A_CYCLE_S and all(r.source == MODEL for r in rounds if r.drafted):
        return prediction.dispatch_s + prediction.turn_s, BY_PLAN
    first = [r.dispatch_s for r in rounds[:_FIRST_ROUNDS]]
    return (median(first) if len(rounds) >= 2 * _FIRST_ROUNDS else None), BY_RUN


def predicted_transfer_s(plan: Plan, overlapped: bool) -> float:
    """Seconds of a round in which values move: copies, or the message after a miss where the drafter goes on."""
    prediction, overlap = plan.prediction, plan.overlap
    if not overlapped:
        return prediction.transfer_s
    if overlap is None or prediction.acceptance_rate is None:
        return 0.0
    return float((1 - prediction.acceptance_rate**overlap.gamma) * overlap.hand_over_s)


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
