"""The bound of `hetero-sd verify` at every scale of logits."""

from __future__ import annotations

import numpy as np
import pytest

from hetero_sd.verify import bounds_of_rounding, compare, logit_bound
from targets.errors import UserError


@pytest.mark.parametrize(("scale", "bound"), [(0.01, 1e-7), (1, 1e-5), (10, 1e-4), (30, 3e-4)])
def test_it_is_relative(scale: float, bound: float) -> None:
    assert logit_bound(scale, 64, 2) == pytest.approx(bound)


@pytest.mark.parametrize("divisor", [1, 8, 256])
def test_logits_divided_by_a_constant_have_the_same_verdict(divisor: float) -> None:
    """Granite's: margins shrink with the logits, and rows are no near-ties for it; an error shrinks likewise."""
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((200, 320)).astype(np.float32) / np.float32(divisor)
    scale = float(np.abs(reference).max())
    bound = logit_bound(scale, 128, 2)
    right = reference + np.float32(1e-6 * scale) * rng.standard_normal(reference.shape).astype(np.float32)
    assert compare([(reference, right)], bound).passed
    wrong = reference.copy()
    wrong[7, 9] += np.float32(2e-5 * scale)
    assert not compare([(reference, wrong)], bound).passed


def test_rounded_activations_are_bounded_by_what_rounding_does_to_the_reference() -> None:
    """Another draw of the same error passes; half as much again, one logit that is far off, or a NaN does not."""
    rng = np.random.default_rng(0)

    def error(size: float) -> np.ndarray:
        return np.float32(size) * rng.standard_normal(reference.shape).astype(np.float32)

    reference = np.zeros((200, 320), np.float32)
    reference[:, 17] = 10  # the best by far
    rounded = compare([(reference, reference + error(0.1))], np.inf)
    assert rounded.error_rms == pytest.approx(0.1, rel=0.01)
    bound, bound_rms = bounds_of_rounding(rounded, 1e-4)
    assert (bound, bound_rms) == (2 * rounded.largest_error + 1e-4, 1.25 * rounded.error_rms + 1e-4)

    ours = reference + error(0.1)
    assert compare([(reference, ours)], bound, bound_rms).passed
    assert not compare([(reference, reference + error(0.15))], bound, bound_rms).passed
    for wrong in (ours[7, 9] + 1.2, np.nan):
        other = ours.copy()
        other[7, 9] = wrong
        assert not compare([(reference, other)], bound, bound_rms).passed
    overflown = compare([(reference, np.full_like(ours, np.nan))], np.inf)
    with pytest.raises(UserError, match="reference's logits are not finite: compile with"):
        bounds_of_rounding(overflown, 1e-4)
    swapped = np.roll(ours, 1, axis=-1)
    assert compare([(reference, swapped)], bound, bound_rms).wrong == 200


def test_near_ties_are_limited_only_where_activations_stay_floats() -> None:
    reference = np.zeros((100, 8), np.float32)
    assert not compare([(reference, reference)], 1e-4).passed
    assert compare([(reference, reference)], 1e-4, 1e-4).passed
