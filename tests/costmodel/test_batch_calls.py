"""Calls of a target with slots, priced: rows share the weights, and each has a context of its own."""

from __future__ import annotations

from typing import Any

import pytest

from costmodel.batch_calls import CallTimes, predicted_calls, row_widths
from costmodel.format import Format
from costmodel.model_costs import ModelCosts
from costmodel.place import Place
from costmodel.processor import CpuSlice, GpuSlice
from costmodel.roofline import Roofline
from targets.device import Board


@pytest.mark.parametrize(("slots", "widths"), [(1, ()), (2, (2,)), (3, (2, 3)), (6, (2, 4, 6)), (64, (2, 4, 8))])
def test_row_widths(slots: int, widths: tuple[int, ...]) -> None:
    assert row_widths(slots) == widths


def test_rows_share_the_weights_and_have_contexts_of_their_own(published: dict[str, Any], rk3588: Board) -> None:
    spec, roofline = published["SmolLM2-135M"](Format("int8", block=32)), Roofline(rk3588)
    costs = ModelCosts(roofline, spec, 0)
    place = costs.whole(CpuSlice(((rk3588.cluster("a76"), 4),)))
    calls = predicted_calls(roofline, spec, place, 8, (1, 8), (32,), 1024)
    assert calls.row_call_s(1, 0) == pytest.approx(costs.step_s(place, 1))
    assert calls.row_call_s(1, 1024) == pytest.approx(ModelCosts(roofline, spec, 1024).step_s(place, 1))
    assert calls.row_call_s(1, 500) == pytest.approx(ModelCosts(roofline, spec, 500).step_s(place, 1), rel=0.02)
    assert calls.row_call_s(1, 0) < calls.row_call_s(8, 0) < 6 * calls.row_call_s(1, 0)
    # eight rows of one sequence read its keys together; of eight sequences each reads its own
    together_s = ModelCosts(roofline, spec, 1024).step_s(place, 8) - costs.step_s(place, 8)
    apart_s = calls.row_call_s(8, 1024) - calls.row_call_s(8, 0)
    one_s = calls.row_call_s(1, 1024) - calls.row_call_s(1, 0)
    assert apart_s > 1.2 * together_s
    assert apart_s == pytest.approx(8 * one_s, rel=0.25)
    assert calls.read_call_s(32, 300) == pytest.approx(
        ModelCosts(roofline, spec, 300).prompt_chunk_s(place, 32), rel=0.02
    )


def test_more_rows_than_a_call_has_take_several(published: dict[str, Any], rk3588: Board) -> None:
    spec, roofline = published["SmolLM2-135M"](), Roofline(rk3588)
    place = ModelCosts(roofline, spec, 0).whole(CpuSlice(((rk3588.cluster("a76"), 4),)))
    calls = predicted_calls(roofline, spec, place, 20, (1, 4), (32,), 256)
    times = CallTimes(calls)
    times.past = 100.0
    assert times.parts(19) == [8, 8, 3]
    assert times.rows_s(19) == pytest.approx(2 * calls.row_call_s(8, 100) + calls.row_call_s(4, 100))
    assert times.rows_s(0) == 0.0
    assert times.read_s(3, 50) == calls.read_call_s(4, 50)
    assert times.read_s(5, 50) == calls.read_call_s(32, 50)


def test_calls_of_a_gpu_and_of_a_split_target(published: dict[str, Any], rk3588: Board) -> None:
    """One row takes what a step does, wherever the parts run; rows of a split target pay its borders once."""
    spec, roofline = published["SmolLM2-135M"](Format("int4", block=32)).with_int8_activations(), Roofline(rk3588)
    costs, cores = ModelCosts(roofline, spec, 0), CpuSlice(((rk3588.cluster("a76"), 4),))
    assert rk3588.gpu is not None
    gpu = GpuSlice(rk3588.gpu, rk3588.clusters[0])
    for rule in ("gpu", "gpu:ffn"):
        place = costs.placed(Place.parse(rule), cores, gpu)
        calls = predicted_calls(roofline, spec, place, 8, (1, 8), (32,), 1024)
        assert calls.row_call_s(1, 0) == pytest.approx(costs.step_s(place, 1))
        assert calls.row_call_s(1, 0) < calls.row_call_s(8, 0) < 4 * calls.row_call_s(1, 0)
        assert calls.row_call_s(8, 0) != pytest.approx(costs.step_s(costs.whole(cores), 8), rel=0.1)
