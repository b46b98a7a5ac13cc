from __future__ import annotations

from typing import Any

import pytest

from costmodel.roofline import CpuSlice, Roofline
from hetero_sd.plan import make_plan
from hetero_sd.plan_prediction import ASSUMED_ALPHA, plan_prediction
from hetero_sd.runtime.stats import comparison, summarise
from hetero_sd.runtime.trace import Round, Trace
from passes.count_work import count_work
from passes.testing import TinyDecoder
from targets.boards import load_board
from targets.cortex_a.tile import cpu_tile


def block(gamma: int) -> tuple[dict[str, Any], Any, Any]:
    board = load_board("rk3588")
    plan = make_plan(board, cpu_tile(board.clusters[0].core), gamma > 0, gamma, 64)
    shapes = {"target": count_work(TinyDecoder().decoder(), "target")}
    if gamma:
        shapes["draft"] = count_work(TinyDecoder(layers=1).decoder(), "draft")
    return plan_prediction(board, plan, shapes), plan, shapes


def test_the_block_is_what_the_runtime_compares_with() -> None:
    predicted, _, _ = block(gamma=3)
    trace = Trace(token_ids=[1, 2, 3], rounds=[Round(3, 1, 0.03, 0.02, 0.0, 0.001)])
    rows = comparison(summarise([trace]), {"prediction": predicted})
    compared = {row["term"] for row in rows if row["deviation"] is not None}
    assert compared >= {"speed", "tokens per round", "acceptance rate", "draft step", "target step, n=4", "dispatch"}


def test_steps_are_those_of_the_roofline() -> None:
    predicted, plan, shapes = block(gamma=3)
    board = load_board("rk3588")
    cores = CpuSlice(((board.cluster(plan.cluster), plan.threads),))
    four = Roofline(board).step(shapes["target"], cores, 4, plan.context // 2).total_s
    assert predicted["verify_step_s"]["4"] == predicted["verify_step_s"]["3"] == pytest.approx(four)
    assert predicted["verify_step_s"]["2"] < four
    assert predicted["acceptance_rate"] == ASSUMED_ALPHA


def test_without_a_drafter() -> None:
    predicted, _, _ = block(gamma=0)
    assert predicted["draft_step_s"] is None
    assert predicted["tokens_per_s"] == pytest.approx(1 / (predicted["verify_step_s"]["1"] + predicted["dispatch_s"]))


def test_the_same_every_time() -> None:
    assert block(gamma=4)[0] == block(gamma=4)[0]
