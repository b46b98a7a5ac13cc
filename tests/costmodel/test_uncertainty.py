from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from costmodel import uncertainty
from costmodel.factors import Factors
from costmodel.question import Question
from costmodel.search import Search
from costmodel.ties import TIE_SHARE
from costmodel.uncertainty import KIND_ERROR, Intervals, interval, number_errors, numbers
from hetero_sd.predict.compilable import bundle_question
from hetero_sd.predict.predict import predict
from hetero_sd.sweep import sweep_point
from targets.boards import load_board
from targets.provenance import Provenance


def test_measured_numbers_make_it_narrower(published: Any, imx95: Any) -> None:
    measured = replace(imx95, provenance={path: Provenance("measured", "here") for path in imx95.provenance})
    ranges = []
    for board in (imx95, measured):
        search = Search(Question(board, (published["Llama-3.2-1B"](),)))
        found = interval(search, search.decide().best)
        ranges.append(found.high / found.low)
    assert ranges[1] < 0.7 * ranges[0]


def test_a_range_decides_how_far_a_number_is_off(published: Any, imx95: Any) -> None:
    """14 GB/s between 12.6 and 15 is 10 % sure downwards and 1/15 upwards; between 7 and 14 it cannot be more."""
    path = "clusters.a55.bandwidth_all_threads_gb_per_s"
    found = []
    for ends, errors in (((12.6, 15.0), (0.1, 1 / 15)), ((7.0, 14.0), (0.5, 0.0)), (None, (0.3, 0.3))):
        board = replace(imx95, provenance=imx95.provenance | {path: Provenance("assumed", "here", ends)})
        assert number_errors(board, path) == pytest.approx(errors)
        search = Search(Question(board, (published["Llama-3.2-1B"](),)))
        best = search.decide().best
        sure = interval(search, best)
        assert sure.influences[0].error == pytest.approx((max(errors) ** 2 + 0.1**2) ** 0.5)
        found.append((best.tokens_per_s / sure.low, sure.high / best.tokens_per_s))
    near, below, without = found
    assert near[0] < without[0] < below[0]
    assert below[1] < without[1]
    assert without[0] == pytest.approx(without[1], rel=0.02)  # the control: no range, as far up as down
    assert below[0] > 1.5 * below[1]


def test_overheads_of_a_board_that_was_never_calibrated(published: Any) -> None:
    """Half to thrice the default on out-of-order Arm cores, four times on in-order ones, a fifth where it is fitted."""
    for name, most in (("rpi5", 3.0), ("rk3566", 4.0), ("host", 2.0)):
        board = load_board(name, measure=False, calibrated=False)
        search = Search(Question(board, (published["Llama-3.2-1B"](),)))
        variant = search.decide().best
        off = {n.factor: (n.down, n.up) for n in numbers(board, variant)}
        assert off["dispatch_cycles"] == pytest.approx((math.log(2), math.log(most)))
        assert off["step_cycles"] == off["dispatch_cycles"]
        fitted = {"factors.step_cycles": Provenance("measured", "here")}
        known = replace(board, factors={"step_cycles": 1e5}, provenance=board.provenance | fitted)
        sure = {n.factor: n.up for n in numbers(known, variant)}
        assert sure["step_cycles"] == pytest.approx(-math.log(0.8))
        assert sure["dispatch_cycles"] == pytest.approx(math.log(most))  # the control: only that one is


@pytest.mark.parametrize("name", ["imx95", "rk3588", "rk3566", "rk3568"])
def test_what_a_gpu_kernel_costs_to_dispatch(published: Any, name: str) -> None:
    """10 to 20 us, as reported for phones; second hand, so an interval counts it as a kernel that nobody measured."""
    board = load_board(name)
    assert board.gpu is not None
    assert 10e-6 <= Factors().gpu_dispatch * board.gpu.launch_overhead_s <= 20e-6
    assert 0.1 * board.gpu.launch_overhead_s < 10e-6  # the control: what was assumed before
    search = Search(Question(board, (published["Llama-3.2-1B"](),)))
    on_gpu = next(v for v in search.decide().leading if v.target_placement.families == ("gpu",))
    (found,) = (n for n in numbers(board, on_gpu) if n.factor == "gpu_dispatch")
    assert found.error == pytest.approx((KIND_ERROR["assumed"] ** 2 + 0.4**2) ** 0.5)


def test_decoding_rests_on_bandwidth(published: Any, imx95: Any) -> None:
    search = Search(Question(imx95, (published["Llama-3.2-1B"](),)))
    found = interval(search, search.decide().best)
    first = found.influences[0]
    assert first.number == "clusters.a55.bandwidth_all_threads_gb_per_s"
    assert first.error == pytest.approx((KIND_ERROR["assumed"] ** 2 + 0.1**2) ** 0.5)
    assert found.low < search.decide().best.tokens_per_s < found.high


def test_acceptance_counts_only_where_something_is_drafted(published: Any, imx95: Any) -> None:
    alone = Search(Question(imx95, (published["Llama-3.2-1B"](),)))
    best = alone.decide().best
    assert interval(alone, best, (0.1, 0.9)) == interval(alone, best)
    pair = Search(Question(imx95, (published["Llama-3.2-3B"](),), (published["Llama-3.2-1B"](),)))
    drafted = pair.decide().best
    assert drafted.gamma
    assert "acceptance" in {i.number for i in interval(pair, drafted, (0.6, 0.9)).influences}


def test_each_interval_is_computed_once(published: Any, imx95: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of variants that tie, whose intervals decide and are shown; those of different variants are different."""
    targets, drafts = ((published[f"Llama-3.2-{size}"](),) for size in ("3B", "1B"))
    question = bundle_question(Question(imx95, targets, drafts, 0.5))
    search = Search(question)
    leading = search.decide().leading
    assert sum(v.tokens_per_s >= (1 - TIE_SHARE) * leading[0].tokens_per_s for v in leading) > 1
    interval_of = Intervals(search)
    for variant in (*leading, *leading):
        assert interval_of(replace(variant, reason="another")) == interval(search, variant)
    assert len({interval_of(variant).low for variant in leading}) == len(leading)

    computed: list[tuple[Any, ...]] = []
    original = uncertainty.numbers

    def counted(board: Any, v: Any) -> Any:
        computed.append((v.mode, v.gamma, v.target_placement, v.draft_placement))
        return original(board, v)

    monkeypatch.setattr(uncertainty, "numbers", counted)
    shown = predict(question).intervals
    assert len(computed) == len(shown) == len(set(computed))
    computed.clear()
    assert sweep_point(targets, drafts, imx95, 0.5, 512)["problem"] == ""
    assert len(computed) == len(set(computed)) > 1
