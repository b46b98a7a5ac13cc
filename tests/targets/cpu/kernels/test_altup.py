"""Kernels on streams and by a row's statistics against numpy, the same bits for every number of rows, and controls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from passes.onnx.rewrite import altup_functions as functions
from targets.cpu.kernels.altup import altup_add, altup_correct, altup_predict
from targets.cpu.kernels.elementwise import scale_columns
from targets.cpu.kernels.row_statistics import gaussian_top_k, match_magnitude
from targets.cpu.kernels.take import join_columns
from tests.targets.cpu.test_kernels import AVX2, Array, normal, run

STREAMS, PART = 3, 24
WIDTH = STREAMS * PART


def matched(x: Array, r: Array, least: float) -> Array:
    own = np.maximum(np.square(x).mean(-1, keepdims=True), least)
    return np.asarray(x * np.sqrt(np.square(r).mean(-1, keepdims=True) / own))


def above(x: Array, deviations: float) -> Array:
    return np.maximum(0, x - x.mean(-1, keepdims=True) - deviations * x.std(-1, keepdims=True))


# maker -> arguments, those of a control, widths of the rows that are read, and the same in numpy
Kernel = tuple[Callable[..., Any], tuple[Any, ...], tuple[Any, ...], tuple[int, ...], Callable[..., Array]]
KERNELS: dict[str, Kernel] = {
    "predict": (altup_predict, (STREAMS,), (STREAMS,), (WIDTH, STREAMS**2), functions.altup_predict),
    "correct": (altup_correct, (STREAMS, 1), (STREAMS, 2), (WIDTH, PART, STREAMS), functions.altup_correct),
    "add": (altup_add, (STREAMS, 1), (STREAMS, 2), (WIDTH, PART), functions.altup_add),
    "magnitude": (match_magnitude, (1e-5,), (4.0,), (WIDTH, WIDTH), matched),
    "top k": (gaussian_top_k, (1.3,), (1.31,), (WIDTH,), above),
}


@pytest.mark.parametrize("name", KERNELS)
def test_against_numpy_and_by_row(name: str) -> None:
    maker, given, other, widths, compute = KERNELS[name]
    rows = [normal(1, 5, width, seed=i) for i, width in enumerate(widths)]
    out = ((1, 5, widths[0]), "float32")
    made = run(maker(AVX2, 5, widths[0], *given), *rows, out=out)
    expected = compute(*(row.astype(np.float64) for row in rows), *given)
    assert np.abs(made - expected).max() < 3e-6
    for t in range(5):
        own, kernel = [row[:, t : t + 1] for row in rows], maker(AVX2, 1, widths[0], *given)
        alone = run(kernel, *own, out=((1, 1, widths[0]), "float32"))
        assert np.array_equal(alone[0, 0], made[0, t])
    if name == "predict":
        rows[1] = rows[1].reshape(1, 5, STREAMS, STREAMS).swapaxes(-1, -2).reshape(1, 5, -1)
    wrong = run(maker(AVX2, 5, widths[0], *other), *rows, out=out)
    assert np.abs(wrong - expected).max() > 1e-3


def test_small_rows_are_matched_above_the_least() -> None:
    x, r = 1e-4 * normal(1, 2, WIDTH), normal(1, 2, WIDTH, seed=1)
    made = run(match_magnitude(AVX2, 2, WIDTH, 1e-5), x, r, out=(x.shape, "float32"))
    assert np.abs(made - matched(x.astype(np.float64), r, 1e-5)).max() < 1e-6
    assert np.abs(made - matched(x.astype(np.float64), r, 1e-12)).max() > 1e-2


def test_columns_are_joined_and_scaled() -> None:
    a, b, w = normal(1, 3, 24), normal(1, 3, 7, seed=1), normal(24, seed=2)
    joined = run(join_columns(AVX2, 3, 24, 7), a, b, out=((1, 3, 31), "float32"))
    assert np.array_equal(joined, np.concatenate([a, b], -1))
    assert np.array_equal(run(scale_columns(AVX2, 3, 24), a, w, out=(a.shape, "float32")), a * w)


def test_what_is_not_finite_stays_so() -> None:
    x = normal(1, 2, WIDTH)
    x[0, 1, 5] = np.nan
    out = (x.shape, "float32")
    for made in (
        run(gaussian_top_k(AVX2, 2, WIDTH, 1.3), x, out=out),
        run(match_magnitude(AVX2, 2, WIDTH, 1e-5), x, normal(1, 2, WIDTH, seed=1), out=out),
    ):
        assert np.isfinite(made[0, 0]).all()
        assert np.isnan(made[0, 1]).any()
