"""The bound of `hetero-sd verify` at every scale of logits."""

from __future__ import annotations

import numpy as np
import pytest

from hetero_sd.verify import compare, logit_bound


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
