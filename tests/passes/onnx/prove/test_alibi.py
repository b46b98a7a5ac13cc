"""ALiBi is found in numbers: a slope a head, from wherever positions are counted; anything else is declined."""

from __future__ import annotations

import numpy as np
import pytest

from passes.onnx.pass_context import Declined
from passes.onnx.prove.alibi import Alibi

SLOPES = (0.25, 0.0625, 0.00390625)
REAL = np.ones((2, 3), bool)


def masked(first: float = 0.0, total: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """(scores of zero with a bias and a causal mask [2, 3 heads, 3, total], what is seen)."""
    keys = np.arange(total) + first
    seen = np.broadcast_to(np.arange(total) <= np.arange(total - 3, total)[:, None], (2, 3, 3, total))
    bias = np.broadcast_to(np.array(SLOPES)[:, None, None] * keys, seen.shape)
    return np.where(seen, bias, np.finfo(np.float32).min).astype(np.float32), seen


@pytest.mark.parametrize("first", [0.0, -8.0, 3.0])
def test_the_bias_is_taken_off(first: float) -> None:
    base, seen = masked(first)
    scores = np.random.default_rng(0).standard_normal(base.shape).astype(np.float32)
    bias = Alibi()
    left = bias.taken_off(np.where(seen, base + scores, base), base, seen, REAL)
    assert bias.slopes == SLOPES
    assert np.abs(left - scores)[seen].max() < 1e-6
    assert (left[~seen] == base[~seen]).all()
    shorter, seen = masked(first, total=5)
    bias.taken_off(shorter, shorter, seen, REAL)


def test_no_bias_is_none() -> None:
    base, seen = masked()
    plain = np.where(seen, 0, base)
    bias = Alibi()
    assert np.array_equal(bias.taken_off(plain, plain, seen, REAL), plain)
    assert bias.slopes == ()
    with pytest.raises(Declined, match="neither a mask nor grows evenly"):
        bias.taken_off(base, base, seen, REAL)


def test_what_is_no_alibi() -> None:
    base, seen = masked()
    with pytest.raises(Declined, match="neither a mask nor grows evenly"):
        Alibi().taken_off(base, np.where(seen, np.where(seen, base, 0) ** 2, base), seen, REAL)
    bent = np.array(base)
    bent[1, 2, 0, 1] += 1e-3
    with pytest.raises(Declined, match="neither a mask nor grows evenly"):
        Alibi().taken_off(bent, bent, seen, REAL)
    bias, twice = Alibi(), np.where(seen, 2 * np.where(seen, base, 0), base)
    bias.taken_off(base, base, seen, REAL)
    with pytest.raises(Declined, match="neither a mask nor grows evenly"):
        bias.taken_off(twice, twice, seen, REAL)


def test_rows_of_padding_tokens_do_not_matter() -> None:
    base, seen = masked()
    bent = np.array(base)
    bent[1, :, 0, 1] += 1.0
    real = np.array(REAL)
    real[1, 0] = False
    bias = Alibi()
    bias.taken_off(bent, bent, seen, real)
    assert bias.slopes == SLOPES
    with pytest.raises(Declined, match="neither a mask nor grows evenly"):
        Alibi().taken_off(bent, bent, seen, REAL)
