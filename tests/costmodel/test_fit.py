from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from costmodel import roofline
from costmodel.cpu_cycles import Cycles, kernel_cycles
from costmodel.decoder import DecoderSpec
from costmodel.factors import OF_FORMATS, Factors
from costmodel.fit import BOUNDS, Fit, Point, fit, predict_point
from costmodel.format import Format
from costmodel.work import Op
from targets.device import Core
from targets.errors import UserError

TRUE = Factors(bandwidth=0.8, compute=1.4, attention=1.5, launch=0.6, step_cycles=250_000.0, overlap=0.75)


def scripted(make_decoder: Any, board: Any, factors: Factors) -> list[Point]:
    """Points that a machine with these factors would have given.

    A fit evaluates every point some 400 times, so ten points cost a test two to four seconds.
    """
    shapes = [make_decoder("wide", 576, 4, 9, 3, 64, 1536, 49152), make_decoder("small", 256, 2, 4, 2, 64, 768, 8000)]
    points = []
    for shape in shapes:
        for threads, rate in ((1, 11.0), (4, 19.0)):
            for n in (1, 2, 4, 5, 6, 8):
                for past in (16, 480):
                    point = Point(shape, "a76", threads, n, past, 1.0, rate)
                    points.append(replace(point, seconds=predict_point(board, factors, point)))
    return points


def held_out(point: Point) -> bool:
    return point.n in (2, 5)


@pytest.fixture(scope="module")
def found(make_decoder: Any, rk3588: Any) -> Fit:
    """The fit to the machine of TRUE, which several tests look at."""
    return fit(rk3588, scripted(make_decoder, rk3588, TRUE), held_out)


@pytest.mark.slow
def test_finds_the_factors_of_a_scripted_machine(found: Fit) -> None:
    assert found.error(held_out=False)[0] < 0.005
    assert found.error(held_out=True)[0] < 0.005
    assert found.error(held_out=True)[1] < 0.03
    assert found.factors.bandwidth == pytest.approx(TRUE.bandwidth, rel=0.03)
    assert found.factors.compute == pytest.approx(TRUE.compute, rel=0.05)
    assert found.factors.gpu_bandwidth == Factors().gpu_bandwidth  # nothing was measured on a GPU


def test_the_defaults_would_have_missed(make_decoder: Any, rk3588: Any) -> None:
    points = scripted(make_decoder, rk3588, TRUE)
    before = [abs(predict_point(rk3588, Factors(), p) / p.seconds - 1) for p in points]
    assert sorted(before)[len(before) // 2] > 0.1


@pytest.mark.slow
def test_cycles_are_counted_once_for_each_kernel(
    make_decoder: Any, rk3588: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not depend on factors, and counting them again and again took most of the time of a fit."""
    counted: list[tuple[int, int]] = []

    def count(op: Op, core: Core, threads: int) -> Cycles:
        counted.append((id(op), threads))
        return kernel_cycles(op, core, threads)

    points = scripted(make_decoder, rk3588, TRUE)[:8]
    monkeypatch.setattr(roofline, "kernel_cycles", count)
    for point in points:
        predict_point(rk3588, TRUE, point)
    once, counted[:] = len(counted), []
    fit(rk3588, points, lambda p: False)
    assert len(counted) <= 2 * once  # while it fits, and for the residuals
    for _ in range(3):  # the negative control: each prediction of its own counts again
        predict_point(rk3588, TRUE, points[0])
    assert len(counted) > 2 * once


@pytest.mark.slow
def test_factors_stay_within_bounds(make_decoder: Any, rk3588: Any) -> None:
    points = [replace(p, seconds=20 * p.seconds) for p in scripted(make_decoder, rk3588, TRUE)][::2]
    factors = fit(rk3588, points, lambda p: False).factors
    assert all(low * 0.999 <= getattr(factors, name) <= high * 1.001 for name, (low, high) in BOUNDS.items())


@pytest.mark.slow
def test_unstable_points_are_listed_but_not_fitted(make_decoder: Any, rk3588: Any) -> None:
    points = scripted(make_decoder, rk3588, TRUE)[:12]
    wild = replace(points[3], seconds=50 * points[3].seconds, stable=False)
    found = fit(rk3588, [*points, wild], lambda p: False)
    assert len(found.residuals) == len(points) + 1
    assert found.error(held_out=False)[1] < 0.05
    stable = replace(wild, stable=True)  # the negative control: one point that is fitted and far off
    assert fit(rk3588, [*points, stable], lambda p: False).error(held_out=False)[1] > 0.5


def test_too_few_points_are_refused(found: Fit, make_decoder: Any, rk3588: Any) -> None:
    points = scripted(make_decoder, rk3588, TRUE)[:5]
    with pytest.raises(UserError, match="5 stable points are too few"):
        fit(rk3588, points, lambda p: False)
    with pytest.raises(UserError, match="no stable point was held out"):
        replace(found, residuals=tuple(r for r in found.residuals if not r.held_out)).error(held_out=True)


@pytest.mark.slow
def test_streams_that_pause_at_pages(make_decoder: Any, rk3588: Any) -> None:
    """From factors without pauses: memory that is slower looks alike, and either predicts what was held out."""
    true = replace(TRUE, page_ns=80.0, overlap=0.4)
    found = fit(rk3588, scripted(make_decoder, rk3588, true), held_out)
    assert found.error(held_out=True)[0] < 0.01


@pytest.mark.slow
def test_kernels_of_each_format_have_their_own_shares(make_decoder: Any, rk3588: Any) -> None:
    """Shares of float16 that differ from those of float32 are found; without them the fit cannot meet both."""
    true = replace(TRUE, bandwidth_float16=0.7, compute_float16=1.5)
    points = []
    for point in scripted(make_decoder, rk3588, TRUE):
        for stored in (Format(), Format("float16")):
            spec = _of_format(point.spec, stored)
            other = replace(point, spec=spec)
            points.append(replace(other, seconds=predict_point(rk3588, true, other)))
    found = fit(rk3588, points, held_out)
    assert {"bandwidth_float16", "compute_float16"} <= set(found.names)
    assert not {"bandwidth_int8", "compute_int4"} & set(found.names)
    assert found.factors.bandwidth_float16 == pytest.approx(0.7, rel=0.05)
    assert found.factors.compute_float16 == pytest.approx(1.5, rel=0.1)
    assert found.factors.bandwidth_int8 == 1.0
    assert found.error(held_out=True)[0] < 0.01
    one = [replace(p, spec=_of_format(p.spec, Format())) for p in points]  # the control: both are taken for one format
    assert fit(rk3588, one, held_out).error(held_out=True)[0] > 0.05


def test_one_format_alone_has_the_shares_of_all(found: Fit) -> None:
    """Nothing tells its own shares from them, so that a calibration also says something of other formats."""
    assert {"bandwidth", "compute"} <= set(found.names)
    assert not [name for kinds in OF_FORMATS.values() for name in kinds.values() if name in found.names]


def _of_format(spec: DecoderSpec, stored: Format) -> DecoderSpec:
    operators = tuple(replace(op, format=stored) if op.kind == "linear" else op for op in spec.operators)
    return replace(spec, operators=operators)


@pytest.mark.slow
def test_gpu_points_move_the_gpu_alone(found: Fit, make_decoder: Any, rk3588: Any) -> None:
    cpu = scripted(make_decoder, rk3588, TRUE)
    slow = replace(TRUE, gpu_compute=0.01, gpu_bandwidth=0.3)
    gpu = [replace(p, cluster="gpu", threads=1) for p in cpu if p.threads == 1]
    gpu = [replace(p, seconds=predict_point(rk3588, slow, p)) for p in gpu]
    alone, both = found, fit(rk3588, cpu + gpu, held_out)
    assert both.factors.compute == alone.factors.compute
    assert both.factors.gpu_compute == pytest.approx(0.01, rel=0.1)
    assert both.factors.gpu_bandwidth == pytest.approx(0.3, rel=0.1)
    assert alone.factors.gpu_compute == Factors().gpu_compute
    assert set(both.names) - set(alone.names) == {n for n in both.names if n.startswith("gpu_")}


def test_a_prompt_is_a_point(published: Any, rk3588: Any) -> None:
    """A chunk with one row of logits costs less than its step with all rows, one before another still less."""
    shape = published["SmolLM2-135M"]()
    step = Point(shape, "a76", 1, 32, 0, 1.0, 11.0)
    whole = predict_point(rk3588, Factors(), replace(step, n=64, chunk=32))
    parts = [predict_point(rk3588, Factors(), replace(step, past=past, chunk=32)) for past in (0, 32)]
    assert 0.95 * parts[0] < whole - parts[1] < 0.99 * parts[0]
    assert parts[0] < predict_point(rk3588, Factors(), step)
