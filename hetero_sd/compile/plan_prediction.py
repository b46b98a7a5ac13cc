"""What a compiled plan is predicted to cost: the block that `run.py --stats` prints beside the measured times.

Arithmetic over the board as it is described, so the same bundle comes out every time. Board `host` is not measured for
it; a calibrated board file gives better numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from costmodel.batch_calls import predicted_calls
from costmodel.confidence import confidence_s
from costmodel.decoder import DecoderSpec
from costmodel.model_costs import ModelCosts
from costmodel.placement import Placement
from costmodel.schema.plan import OVERLAPPED
from costmodel.schema.prediction import LivePrediction, PlanPrediction
from costmodel.speculative import RoundCosts, acceptance_rate, sequential_round
from costmodel.turns import turns_of
from hetero_sd.predict.predict import Prediction


def plan_prediction(
    asked: Prediction,
    specs: Mapping[str, DecoderSpec],
    placements: Mapping[str, Placement],
    reading: Mapping[str, Placement],
    target_widths: Sequence[int],
    draft_widths: Sequence[int],
    chunk: int,
    alpha_tokens: float,
    cache_rows: int,
    long: int | None = None,
) -> PlanPrediction:
    """Seconds of the plan's steps at half of its context; a step of n tokens runs the narrowest entry that holds them.

    Args:
        asked: the prediction of what the user asked for; its best variant is the plan's.
        specs: the models by role.
        placements: where each runs.
        reading: where each reads prompts.
        target_widths: entry points of the target.
        draft_widths: entry points of the drafter.
        chunk: tokens that a prompt is read in.
        alpha_tokens: judged tokens of a run that the acceptance counts for.
        cache_rows: tokens that the caches have room for.
        long: tokens of a wider chunk, or None.
    """
    question, gamma = asked.question, asked.decision.best.gamma
    widths = {"target": sorted(target_widths), "draft": sorted(draft_widths)}

    def step_s(role: str, n: int) -> float:
        costs, place = asked.search.costs(specs[role]), placements[role]
        whole, rest = divmod(n, widths[role][-1])
        width = next((w for w in widths[role] if w >= rest), 0) if rest else 0
        each = costs.step_s(place, widths[role][-1]) if whole else 0.0
        return whole * each + (costs.step_s(place, width) if width else 0.0)

    def transfer_s(role: str, n: int) -> float:
        return asked.search.costs(specs[role]).step(placements[role], n).transfer_s

    drafts = "draft" in placements
    one, two = (step_s("draft", n) for n in (1, specs["draft"].after_acceptance)) if drafts else (0.0, 0.0)
    roofline = asked.search.roofline
    overhead, turns, empty = roofline.round_overhead_s(), turns_of(roofline), ModelCosts(roofline, specs["target"], 0)

    def verify_s(n: int) -> float:
        return step_s("target", n) + (turns.verify_s if drafts and n > 1 else 0.0)

    one, two = (one + turns.draft_s, two + turns.draft_s) if drafts else (one, two)
    terms = RoundCosts(one, two, verify_s, overhead, turn_s=turns.loop_s if drafts else 0.0)
    best = asked.decision.best
    expected = best.round if best.mode == OVERLAPPED else sequential_round(question.alpha, gamma, terms)
    sure = asked.intervals[0]
    costs = asked.search.costs(specs["target"])
    chunk_s = costs.prompt_chunk_s(reading["target"], chunk, fills=True)
    live = None
    if drafts:
        live = LivePrediction(
            alpha=acceptance_rate(question.alpha, gamma or 4),
            draft_s=one,
            verify_s={n: verify_s(n) + (turns.loop_s if n > 1 else 0.0) for n in widths["target"]},
            round_s=overhead,
            chunk_s=asked.search.costs(specs["draft"]).prompt_chunk_s(reading["draft"], chunk, fills=True),
            chunk=chunk,
            alpha_tokens=alpha_tokens,
        )
    chunks = (chunk,) if long is None else (chunk, long)
    calls = {
        role: predicted_calls(
            roofline, specs[role], place, question.slots, widths[role], chunks, cache_rows, reading[role]
        )
        for role, place in placements.items()
        if question.slots > 1
    }
    return PlanPrediction(
        acceptance_rate=acceptance_rate(question.alpha, gamma) if gamma else None,
        acceptance_source=asked.alpha_source if drafts else None,
        tokens_per_round=expected.tokens if gamma else None,
        tokens_per_s=expected.tokens_per_s,
        tokens_per_s_interval=(sure.low, sure.high),
        draft_step_s=expected.draft_s / gamma if gamma and best.mode != OVERLAPPED else one if drafts else None,
        verify_step_s={n: verify_s(n) for n in range(1, widths["target"][-1] + 1)},
        prompt_chunk_s=chunk_s,
        sampling_s=0.0,
        dispatch_s=overhead,
        turn_s=terms.turn_s,
        transfer_s=transfer_s("target", gamma + 1) + (gamma * transfer_s("draft", 1) if gamma and drafts else 0.0),
        slot_calls=calls.get("target"),
        draft_slot_calls=calls.get("draft"),
        start_s=roofline.text_start_s(),
        turn_start_s=turns.start_s if drafts else 0.0,
        confidence_s=confidence_s(roofline, specs["draft"].vocab) if drafts else 0.0,
        context=question.context,
        live=live,
        prompt_start_s=empty.prompt_chunk_s(reading["target"], chunk, fills=True),
        long_chunks_s={long: _from_start(empty, costs, reading["target"], long)} if long is not None else {},
        prompt_result_s=max(0.0, costs.prompt_chunk_s(reading["target"], chunk) - chunk_s),
    )


def _from_start(empty: ModelCosts, later: ModelCosts, place: Placement, chunk: int) -> tuple[float, float]:
    return empty.prompt_chunk_s(place, chunk, fills=True), later.prompt_chunk_s(place, chunk, fills=True)
