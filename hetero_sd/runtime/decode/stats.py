"""What a run measured, and what the plan predicted for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import NormalDist, median
from typing import Any

from costmodel.schema.plan import Plan
from hetero_sd.runtime.decode.predicted_run import (
    BY_PLAN,
    predicted_first_token_s,
    predicted_loop_s,
    predicted_speed,
    predicted_time_shares,
    predicted_transfer_s,
)
from hetero_sd.runtime.decode.stopping import class_edges, confidence_class
from hetero_sd.runtime.decode.trace import Round, Trace, first_rounds_s

_Z_95 = NormalDist().inv_cdf(0.975)  # two-sided 95 % quantile of the normal distribution
HAND_OVER_S = 5e-5  # that a hand-over may take: half of the shortest steps that there are
_TERMS = ("draft", "verify", "wait", "sampling", "confidence", "deciding", "dispatch")  # of a round


def summarise(traces: Sequence[Trace]) -> dict[str, Any]:
    """Return the measurements of one or more generations, ready for JSON; what was not measured is None.

    Seconds throughout. ``tokens_per_s`` counts the tokens after the first one over the time they took. A term of
    ``median_s`` is the median over rounds: ``draft_step`` of the mean step of a round, ``verify_step`` by the
    number of tokens verified in one pass (1 is a plain decoding step), ``sampling`` and ``dispatch`` of a round;
    means of a round are ``deciding``, and ``transfer`` where values move between processors, which is in other terms;
    where the drafter goes on while the target verifies, ``wait`` of a round and ``hand_over`` of a message, else
    ``first_rounds``: what those of a text took longer than later ones. ``kept_tokens`` of the prompts were in the
    target's cache already. ``acceptance_by_position`` has for the first, second, ... drafted token of a round how
    often it was accepted, and judged. ``time_shares`` are shares of ``decode_s``: terms of the rounds, of which
    ``dispatch`` is the loop, and what the drafter read. ``gammas`` counts the rounds by drafted tokens, ``sources``
    the drafted and accepted tokens by what they were made from. ``switches`` are those of trace.Switch,
    ``generation`` counting the traces from 0. ``stopping`` is of the rounds whose drafts may have ended by the
    drafter's confidence: ``calibration`` has, for the confidences ``[from, below]`` of a class, how many drafted
    tokens were judged and accepted. None where there are no such rounds. ``hand_overs`` counts them, and those
    that took no more than ``HAND_OVER_S``; None where there are none.
    """
    rounds = [r for trace in traces for r in trace.rounds]
    drafted = [r for r in rounds if r.drafted]
    later_tokens = sum(max(0, len(trace.token_ids) - 1) for trace in traces)
    decode_s = sum(trace.decode_s for trace in traces)
    alpha, interval = acceptance_rate(rounds)
    widths = sorted({r.drafted + 1 for r in rounds})
    beside = [s for trace in traces for s in trace.draft_steps_s]
    overlapped, handed = any(r.wait_s for r in rounds), [s for trace in traces for s in trace.hand_overs_s]
    return {
        "prompt_tokens": sum(trace.prompt_tokens for trace in traces),
        "kept_tokens": sum(trace.kept_tokens for trace in traces),
        "new_tokens": sum(len(trace.token_ids) for trace in traces),
        "finish_reason": traces[0].finish_reason if len(traces) == 1 else None,
        "time_to_first_token_s": _median([trace.prefill_s for trace in traces]),
        "decode_s": decode_s,
        "tokens_per_s": later_tokens / decode_s if decode_s > 0 else None,
        "rounds": len(rounds),
        "drafted": sum(r.drafted for r in rounds),
        "accepted": sum(r.accepted for r in rounds),
        "acceptance_rate": alpha,
        "acceptance_interval": interval,
        "acceptance_by_position": _by_position(drafted),
        "gammas": {str(g): sum(r.drafted == g for r in rounds) for g in sorted({r.drafted for r in rounds})},
        "sources": _by_source(drafted),
        "tokens_per_round": _tokens_per_round(rounds if overlapped else drafted),
        "median_s": {
            "draft_step": _median(beside if overlapped else [r.draft_s / r.drafted for r in drafted]),
            "verify_step": {str(n): _median([r.verify_s for r in rounds if r.drafted + 1 == n]) for n in widths},
            "sampling": _median([r.sampling_s for r in rounds]),
            "dispatch": _median([r.dispatch_s for r in rounds]),
            "deciding": _mean([r.deciding_s for r in rounds]),
            "transfer": _mean([r.transfer_s for r in rounds]),
            "wait": _median([r.wait_s for r in rounds]) if overlapped else None,
            "first_rounds": None if overlapped else _median(_first_rounds(traces)),
            "hand_over": _median(handed),
        },
        "hand_overs": {"count": len(handed), "short": sum(s <= HAND_OVER_S for s in handed)} if handed else None,
        "time_shares": _time_shares(traces),
        "stopping": _stopping(drafted),
        "switches": [{"generation": i, **asdict(s)} for i, trace in enumerate(traces) for s in trace.switches],
    }


def _mean(seconds: Sequence[float]) -> float | None:
    return sum(seconds) / len(seconds) if any(seconds) else None


def _first_rounds(traces: Sequence[Trace]) -> list[float]:
    return [s for trace in traces if trace.rounds and (s := first_rounds_s(trace.rounds)) is not None]


def _tokens_per_round(rounds: Sequence[Round]) -> float | None:
    return sum(r.accepted + 1 for r in rounds) / len(rounds) if rounds else None


def _by_position(drafted: Sequence[Round]) -> list[list[int]]:
    places = range(max((r.drafted for r in drafted), default=0))
    judged = [sum(i <= r.accepted and i < r.drafted for r in drafted) for i in places]
    return [[sum(i < r.accepted for r in drafted), count] for i, count in zip(places, judged, strict=True) if count]


def _time_shares(traces: Sequence[Trace]) -> dict[str, float]:
    seconds = {term: sum(getattr(r, f"{term}_s") for t in traces for r in t.rounds) for term in _TERMS}
    seconds["read"] = sum(trace.draft_prefill_s for trace in traces)
    whole = sum(seconds.values())
    return {term: spent / whole for term, spent in seconds.items()} if whole > 0 else {}


def _stopping(drafted: Sequence[Round]) -> dict[str, Any] | None:
    limited = [r for r in drafted if r.confidences]
    if not limited:
        return None
    judged, accepted = Counter[int](), Counter[int]()
    for r in limited:
        for i, confidence in enumerate(r.confidences[: r.accepted + 1]):
            judged[confidence_class(confidence)] += 1
            accepted[confidence_class(confidence)] += i < r.accepted
    return {
        "rounds": len(limited),
        "drafted": sum(r.drafted for r in limited),
        "stopped": sum(r.stopped for r in limited),
        "confidence_s": median(r.confidence_s / r.drafted for r in limited),
        "calibration": [
            {"confidence": list(class_edges(index)), "judged": judged[index], "accepted": accepted[index]}
            for index in sorted(judged)
        ],
    }


def _by_source(drafted: Sequence[Round]) -> dict[str, dict[str, int]]:
    return {
        source: {
            "drafted": sum(r.drafted for r in drafted if r.source == source),
            "accepted": sum(r.accepted for r in drafted if r.source == source),
        }
        for source in sorted({r.source for r in drafted})
    }


def acceptance_rate(rounds: Sequence[Round]) -> tuple[float | None, list[float] | None]:
    """Return the probability that a drafted token is accepted, and its 95 % Wilson interval.

    Maximum likelihood for a geometric law truncated at gamma: accepted / (accepted + rounds with a rejection).
    Tokens drafted after a rejection were not judged and do not count. None where nothing was judged.
    """
    accepted = sum(r.accepted for r in rounds)
    judged = accepted + sum(r.accepted < r.drafted for r in rounds)
    if not judged:
        return None, None
    return accepted / judged, list(wilson(accepted, judged))


def wilson(passed: int, seen: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion, `passed` of `seen` > 0 (Wilson 1927); a device has no scipy."""
    share, z2 = passed / seen, _Z_95**2
    centre = (share + z2 / (2 * seen)) / (1 + z2 / seen)
    half = _Z_95 * math.sqrt(share * (1 - share) / seen + z2 / (4 * seen**2)) / (1 + z2 / seen)
    return (centre - half if passed else 0.0, centre + half if passed < seen else 1.0)


def comparison(
    measured: Mapping[str, Any], plan: Plan | None, traces: Sequence[Trace] = (), gamma: int | None = None
) -> list[dict[str, Any]]:
    """Return rows {term, unit, measured, predicted, deviation, predicted_by}; deviation is measured / predicted - 1.

    Predictions are of the plan, for the lengths of those generations, or of what `predicted_by` names; what nothing
    predicts is None. The speed is that of texts as long as these with `gamma` in every round, where that was fixed.
    """
    if plan is not None and measured["median_s"]["wait"] is not None:
        plan = _beside(plan)
    terms, predicted = measured["median_s"], None if plan is None else plan.prediction
    overlap = None if plan is None or terms["wait"] is None else plan.overlap
    verify = {} if predicted is None else predicted.verify_step_s
    first = None if plan is None else _median([predicted_first_token_s(plan, trace) for trace in traces])
    speed = None if plan is None else plan.prediction.tokens_per_s
    if plan is not None and gamma is not None and (short := predicted_speed(plan, traces, gamma)) is not None:
        speed = short
    rows = [
        _row("time to first token", "ms", measured["time_to_first_token_s"], first),
        _row("speed", "tokens/s", measured["tokens_per_s"], speed),
        _row("tokens per round", "", measured["tokens_per_round"], predicted.tokens_per_round if predicted else None),
        _row("acceptance rate", "", measured["acceptance_rate"], predicted.acceptance_rate if predicted else None),
        _row("draft step", "ms", terms["draft_step"], predicted.draft_step_s if predicted else None),
    ]
    for width, seconds in terms["verify_step"].items():
        rows.append(_row(f"target step, n={width}", "ms", seconds, verify.get(int(width))))
    rows.append(_row("sampling", "ms", terms["sampling"], predicted.sampling_s if predicted else None))
    loop, by = (None, BY_PLAN) if plan is None else predicted_loop_s(plan, traces)
    rows += [_row("dispatch", "us", terms["dispatch"], loop, by), _row("deciding", "us", terms["deciding"], None)]
    moved = None if plan is None else predicted_transfer_s(plan, terms["wait"] is not None)
    rows.append(_row("transfer in a round", "us", terms["transfer"], moved))
    start = 0.0 if predicted is None else predicted.turn_start_s if measured["drafted"] else predicted.start_s
    # below a nanosecond it is the cycle that stands for what no calibration has measured
    rows.append(_row("first rounds, more", "us", terms["first_rounds"], round(start, 9)))
    rows.append(_row("wait for drafts", "ms", terms["wait"], overlap.wait_s if overlap else None))
    rows.append(_row("hand-over", "us", terms["hand_over"], overlap.hand_over_s if overlap else None))
    return rows


def _beside(plan: Plan) -> Plan:
    """The plan with what it predicts where the drafter goes on beside the target, which may be nothing."""
    overlap, own = plan.overlap, plan.prediction
    if overlap is None:
        return replace(plan, prediction=replace(own, tokens_per_round=None, tokens_per_s=0.0))
    steps = {n: seconds * overlap.target_slowdown for n, seconds in own.verify_step_s.items()}
    beside = replace(
        own,
        tokens_per_round=overlap.tokens_per_round,
        tokens_per_s=overlap.tokens_per_s,
        draft_step_s=None if own.draft_step_s is None else own.draft_step_s * overlap.draft_slowdown,
        verify_step_s=steps,
    )
    return replace(plan, prediction=beside)


def stats_json(traces: Sequence[Trace], plan: Plan | None, gamma: int | None = None) -> dict[str, Any]:
    """Return the summary with the comparison under ``predicted_vs_measured``; `gamma` where it was fixed.

    ``predicted_time_shares`` are what the plan's steps make of ``time_shares``.
    """
    measured = summarise(traces)
    beside = plan if plan is None or measured["median_s"]["wait"] is None else _beside(plan)
    shares = {} if beside is None else predicted_time_shares(beside, traces)
    return {
        **measured,
        "predicted_time_shares": shares,
        "predicted_vs_measured": comparison(measured, plan, traces, gamma),
    }


def _row(term: str, unit: str, measured: float | None, predicted: float | None, by: str = BY_PLAN) -> dict[str, Any]:
    scale = {"ms": 1e3, "us": 1e6}.get(unit, 1.0)  # of what is given in seconds
    return {
        "term": term,
        "unit": unit,
        "measured": None if measured is None else measured * scale,
        "predicted": predicted * scale if predicted else None,
        "deviation": measured / predicted - 1 if predicted and measured is not None else None,
        "predicted_by": by,
    }


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
