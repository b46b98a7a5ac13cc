"""OpenCL kernels on streams side by side and by a row's statistics against numpy, at odd sizes, with controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from passes.onnx.rewrite import altup_functions as functions
from targets.opencl.kernels.norm import partial_sums
from tests.targets.cpu.kernels.test_altup import above, matched
from tests.targets.opencl.test_kernels import MALI, SMALL, Array, Run, normal

N, STREAMS = 3, 3
SUMS = "float32"


def kernel(name: str, tile: Any, width: int, *given: float) -> tuple[Any, list[Array], Array, list[Any]]:
    """A kernel, its inputs, what numpy makes of them, and its scratch."""
    from targets.opencl.kernels.altup import altup_add, altup_correct, altup_predict
    from targets.opencl.kernels.row_statistics import gaussian_top_k, match_magnitude

    x, part, sums = normal(1, N, width), width // STREAMS, partial_sums(width)
    wide = x.astype(np.float64)
    if name == "predict":
        c = normal(1, N, STREAMS**2, seed=1)
        return altup_predict(tile, N, width, STREAMS), [x, c], functions.altup_predict(wide, c, STREAMS), []
    if name == "correct":
        a, c = normal(1, N, part, seed=1), normal(1, N, STREAMS, seed=2)
        func = altup_correct(tile, N, width, STREAMS, int(given[0]))
        return func, [x, a, c], functions.altup_correct(wide, a, c, STREAMS, 1), []
    if name == "add":
        a = normal(1, N, part, seed=1)
        return altup_add(tile, N, width, STREAMS, int(given[0])), [x, a], functions.altup_add(wide, a, STREAMS, 1), []
    if name == "magnitude":
        r = normal(1, N, width, seed=1)
        scratch = [((2, N, sums), SUMS)]
        return match_magnitude(tile, N, width, *given), [x, r], matched(wide, r.astype(np.float64), 1e-5), scratch
    func = gaussian_top_k(tile, N, width, *given)
    return func, [x], above(wide, 1.3), [((N, sums), SUMS), ((N, sums), SUMS)]


GIVEN = {"predict": ((), ()), "correct": ((1,), (2,)), "add": ((1,), (2,)), "magnitude": ((1e-5,), (4.0,))}
GIVEN["top k"] = ((1.3,), (1.31,))


@pytest.mark.parametrize(("tile", "width"), [(MALI, 72), (SMALL, 39)], ids=["MALI", "SMALL"])
@pytest.mark.parametrize("name", GIVEN)
def test_streams_against_numpy(run: Run, tile: Any, width: int, name: str) -> None:
    right, wrong = GIVEN[name]
    func, inputs, expected, scratch = kernel(name, tile, width, *right)
    made = run(func, *inputs, out=(inputs[0].shape, "float32"), scratch=scratch)
    assert np.abs(made - expected).max() < 5e-6
    func, inputs, _, scratch = kernel(name, tile, width, *wrong)
    if name == "predict":  # coefficients of a stream for those that read it
        inputs[1] = inputs[1].reshape(1, N, STREAMS, STREAMS).swapaxes(-1, -2).reshape(1, N, -1).copy()
    made = run(func, *inputs, out=(inputs[0].shape, "float32"), scratch=scratch)
    assert np.abs(made - expected).max() > 1e-3


@pytest.mark.parametrize("tile", [MALI, SMALL], ids=["MALI", "SMALL"])
def test_streams_are_joined_and_scaled(run: Run, tile: Any) -> None:
    from targets.opencl.kernels.elementwise import scale_columns
    from targets.opencl.kernels.take import join_columns

    a, b, w = normal(1, N, 24), normal(1, N, 7, seed=1), normal(24, seed=2)
    joined = run(join_columns(tile, N, 24, 7), a, b, out=((1, N, 31), "float32"))
    assert np.array_equal(joined, np.concatenate([a, b], -1))
    scaled = run(scale_columns(tile, N, 24), a, w, out=(a.shape, "float32"))
    assert np.array_equal(scaled, a * w)
    assert not np.array_equal(scaled, a)
