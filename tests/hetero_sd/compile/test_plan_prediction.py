from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from costmodel.confidence import confidence_s
from costmodel.model_costs import ModelCosts
from costmodel.processor import CpuSlice, GpuSlice
from costmodel.roofline import Roofline
from costmodel.schema.plan import Plan
from costmodel.speculative import acceptance_rate
from hetero_sd.compile.plan import Overrides, make_plan
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.decode.predicted_run import expected_rounds
from hetero_sd.runtime.decode.stats import comparison, summarise
from hetero_sd.runtime.decode.trace import Round, Trace
from passes.analysis.count_work import count_work
from passes.testing import TinyDecoder
from targets.boards import load_board
from targets.read_board import board_from_json


def planned(gamma: int, place: str = "cpu", draft: bool = True) -> tuple[Plan, dict[str, Any]]:
    shapes = {"target": count_work(TinyDecoder().decoder(), "target")}
    if draft:
        shapes["draft"] = count_work(TinyDecoder(layers=1).decoder(), "draft")
    plan, _ = make_plan(load_board("rk3588"), shapes, 64, Overrides(gamma=gamma, place=place))
    return plan, shapes


def test_the_block_is_what_the_runtime_compares_with() -> None:
    plan, _ = planned(gamma=3)
    trace = Trace(token_ids=[1, 2, 3], rounds=[Round(3, 1, 0.03, 0.02, 0.0, 0.001)])
    rows = comparison(summarise([trace]), plan)
    compared = {row["term"] for row in rows if row["deviation"] is not None}
    assert compared >= {"speed", "tokens per round", "acceptance rate", "draft step", "target step, n=4", "dispatch"}


def test_steps_are_those_of_the_roofline() -> None:
    plan, shapes = planned(gamma=3)
    board, predicted = load_board("rk3588"), plan.prediction
    cores = CpuSlice(((board.cluster(plan.cluster), plan.threads),))
    four = Roofline(board).step(shapes["target"], cores, 4, plan.context // 2).total_s
    assert predicted.verify_step_s[4] == predicted.verify_step_s[3] == pytest.approx(four, rel=1e-5)
    assert predicted.verify_step_s[2] < four
    assert predicted.acceptance_rate == 0.8
    assert predicted.confidence_s == pytest.approx(confidence_s(Roofline(board), shapes["draft"].vocab), rel=1e-5)
    assert planned(gamma=0, draft=False)[0].prediction.confidence_s == 0.0


def test_a_prompt_is_read_with_more_threads_than_a_token_is_decoded_with() -> None:
    """On a Pi 5: chunks are priced with them, and the plan has their number."""
    from hetero_sd.predict.inputs import with_activations
    from hetero_sd.predict.known_models import known_model

    spec, board = with_activations(known_model("Qwen2.5-1.5B", "int8"), None), load_board("rpi5")
    plan, _ = make_plan(board, {"target": spec}, 512, Overrides(gamma=0))
    assert (plan.threads, plan.prompt_threads) == (1, 4)
    costs = ModelCosts(Roofline(board), spec, plan.context // 2)
    one, four = (costs.whole(CpuSlice(((board.clusters[0], threads),))) for threads in (1, 4))
    assert plan.prediction.prompt_chunk_s == pytest.approx(
        costs.prompt_chunk_s(four, plan.prefill_width, fills=True), rel=1e-3
    )
    assert plan.prediction.verify_step_s[1] == pytest.approx(costs.step_s(one, 1), rel=1e-3)
    assert costs.prompt_chunk_s(one, 32) > 1.5 * costs.prompt_chunk_s(four, 32)  # the control: as it was


def test_a_split_model_is_priced_by_its_segments() -> None:
    plan, shapes = planned(gamma=0, place="target=gpu:1-head", draft=False)
    assert {role: placed.place.text for role, placed in plan.places.items()} == {"target": "gpu:1-head"}
    board = load_board("rk3588")
    cluster = board.cluster(plan.cluster)
    cores, gpu = CpuSlice(((cluster, plan.threads),)), GpuSlice(board.gpu, cluster)  # type: ignore[arg-type]
    roofline, shape = Roofline(board), shapes["target"]
    from costmodel.work import step_units

    units = step_units(shape, 1, plan.context // 2)
    by_hand = roofline.step_overhead(cores).total_s + roofline.step_overhead(gpu).total_s
    by_hand += roofline.border(cores, gpu, shape.hidden).total_s
    by_hand += sum(e.total_s for e in roofline.units(units, cores)[:2] + roofline.units(units, gpu)[2:])
    assert plan.prediction.verify_step_s[1] == pytest.approx(by_hand, rel=1e-5)
    whole, _ = planned(gamma=0, place="gpu", draft=False)
    assert whole.prediction.verify_step_s[1] != pytest.approx(by_hand, rel=1e-2)


def test_copies_between_processors_are_told_apart() -> None:
    """Of a split target's step of four tokens, where memory is not unified."""
    unified = load_board("rk3588")
    assert unified.gpu is not None
    apart = replace(unified, gpu=replace(unified.gpu, unified_memory=False))
    shapes = {role: count_work(TinyDecoder(layers=n).decoder(), role) for role, n in (("target", 2), ("draft", 1))}
    asked = Overrides(gamma=3, place="target=gpu:1-head,draft=cpu")
    (plan, _), (mapped, _) = (make_plan(board, shapes, 64, asked) for board in (apart, unified))
    cluster = apart.cluster(plan.cluster)
    cores, gpu = CpuSlice(((cluster, plan.threads),)), GpuSlice(apart.gpu, cluster)  # type: ignore[arg-type]
    values = 4 * shapes["target"].hidden
    assert plan.prediction.transfer_s == pytest.approx(Roofline(apart).border(cores, gpu, values).transfer_s, rel=1e-3)
    assert plan.prediction.transfer_s > 0
    assert mapped.prediction.transfer_s == 0


def test_what_turns_add_is_in_the_plan() -> None:
    """Of a board that was calibrated: each row of --stats has its own, and the target alone has none."""
    board = load_board("rk3588")
    measured = {"round_cycles": 2.3e3, "turn_cycles": 23e3, "draft_turn_cycles": 46e3, "verify_turn_cycles": 69e3}
    measured |= {"start_cycles": 115e3, "turn_start_cycles": 230e3}
    plans = []
    for factors in ({"round_cycles": 2.3e3}, measured):
        shapes = {role: count_work(TinyDecoder(layers=n).decoder(), role) for role, n in (("target", 2), ("draft", 1))}
        facts = {name: {"value": value, "kind": "measured", "source": "here"} for name, value in factors.items()}
        calibrated = board_from_json({**board.to_json(), "factors": facts}, "here")
        plans.append(make_plan(calibrated, shapes, 64, Overrides(gamma=3, place="cpu"))[0])
    few, more = (plan.prediction for plan in plans)
    assert more.turn_s == pytest.approx(10e-6, rel=1e-3)
    assert few.draft_step_s is not None
    assert more.draft_step_s is not None
    assert more.draft_step_s - few.draft_step_s == pytest.approx(20e-6, rel=1e-3)
    assert more.verify_step_s[4] - few.verify_step_s[4] == pytest.approx(30e-6, rel=1e-3)
    assert more.verify_step_s[1] == few.verify_step_s[1]
    assert (more.start_s, more.turn_start_s) == pytest.approx((50e-6, 100e-6), rel=1e-3)
    assert max(few.start_s, few.turn_start_s) < 1e-8
    assert more.dispatch_s == few.dispatch_s == pytest.approx(1e-6)
    trace = Trace(token_ids=[1, 2, 3], rounds=[Round(3, 1, 0.03, 0.02, 0.0, 0.001, source=MODEL)])
    alone = Trace(token_ids=[1, 2, 3], rounds=[Round(0, 0, 0.0, 0.02, 0.0, 0.001)])
    for ran, gamma, round_s in (
        (trace, 3, 3 * more.draft_step_s + more.verify_step_s[4] + 11e-6),
        (alone, 0, more.verify_step_s[1] + 1e-6),
    ):
        start_s = 100e-6 if gamma else 50e-6
        rows = {row["term"]: row["predicted"] for row in comparison(summarise([ran]), plans[1], [ran], gamma)}
        assert rows["dispatch"] == pytest.approx(11.0 if gamma else 1.0, rel=1e-3)
        rounds = expected_rounds(2, more.acceptance_rate or 0.0, gamma)[2]
        assert rows["speed"] == pytest.approx(2 / (rounds * round_s + start_s), rel=1e-4)


def test_without_a_drafter() -> None:
    plan, _ = planned(gamma=0, draft=False)
    predicted = plan.prediction
    assert predicted.draft_step_s is None
    assert predicted.live is None
    seconds = predicted.verify_step_s[1] + predicted.dispatch_s
    assert predicted.tokens_per_s == pytest.approx(1 / seconds, rel=1e-5)


def test_live_decisions_can_start_from_it() -> None:
    for gamma in (0, 3):
        plan, _ = planned(gamma)
        live = plan.prediction.live
        assert live is not None
        assert tuple(live.verify_s) == plan.target_widths
        assert live.alpha == 0.8
        assert live.chunk == plan.prefill_width


def test_acceptance_as_runs_measure_it() -> None:
    assert acceptance_rate(0.7, 5) == pytest.approx(0.7)
    assert acceptance_rate(1.0, 3) == 1.0
    # 0.9 + 0.45 accepted; judged: those, and a rejection where not both pass
    assert acceptance_rate([0.9, 0.5], 2) == pytest.approx(1.35 / (1.35 + 1 - 0.45))
