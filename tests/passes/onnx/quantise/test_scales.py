"""Scales and codes: by hand, against every scale that is tried, and the same in both directions of storing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from passes.onnx.quantise.scales import block_codes, block_scales, codes_of, floats_of, scales_of, tried

WEIGHTS = st.floats(-8, 8, width=32)
Array = npt.NDArray[np.float32]


def one_block(numbers: list[float]) -> Array:
    return np.array(numbers, np.float32)[:, None]


def error(w: Array, scale: npt.NDArray[np.float16], bits: int) -> Array:
    wide = scale.astype(np.float32)
    return np.asarray(((block_codes(w, wide, bits) * wide - w) ** 2).sum(0))


def test_by_hand() -> None:
    """-4 is the largest: with t = 8 the scale is 1/2 and every number a multiple, so that nothing is lost."""
    w = one_block([-4, 3.5, 0, 0.5, -1, 2, -0.5, 1] * 2)
    scale = block_scales(w, 4)
    assert scale.tolist() == [0.5]
    assert block_codes(w, scale.astype(np.float32), 4)[:8, 0].tolist() == [-8, 7, 0, 1, -2, 4, -1, 2]
    assert error(w, scale, 4).tolist() == [0]


def test_the_largest_may_be_positive() -> None:
    """Then the scale is negative: the code that only one sign has is for the largest."""
    w = one_block([4, -3.5, 0, 0.5] * 4)
    scale = block_scales(w, 4)
    assert scale.tolist() == [-0.5]
    assert block_codes(w, scale.astype(np.float32), 4)[:4, 0].tolist() == [-8, 7, 0, -1]


def test_both_signs_that_reach_as_far() -> None:
    """7 and -7: t = 7 gives both, whose error is 0; t = 8 would cut the positive one."""
    w = one_block([-7, 7, 3, -2] * 4)
    assert block_scales(w, 4).tolist() == [1]
    assert error(w, np.array([7 / 8], np.float16), 4)[0] > 1


def test_eight_bits_by_hand() -> None:
    w = one_block([-127, 127, 64, 1] * 8)
    assert block_scales(w, 8).tolist() == [1]
    assert block_codes(w, np.ones(1, np.float32), 8)[:4, 0].tolist() == [-127, 127, 64, 1]


def test_a_far_number_is_cut_where_the_rest_gains() -> None:
    """The last scales that are tried cut the largest; more than a fifth they never take."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((256, 500)).astype(np.float32)
    scale = block_scales(w, 4).astype(np.float32)
    extreme = np.take_along_axis(w, np.abs(w).argmax(0)[None], 0)[0]
    t = -extreme / scale
    assert (t > 8.1).any()
    assert (t < 10.01).all()
    assert (t > 6.99).all()


def test_zeros_have_the_scale_zero() -> None:
    w = np.zeros((32, 2), np.float32)
    scale = block_scales(w, 4)
    assert scale.tolist() == [0, 0]
    assert not np.signbit(scale).any()
    assert block_codes(w + np.float32(1e-9), scale.astype(np.float32), 4).tolist() == w.tolist()


@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan, 3e38, 1e6])
def test_what_float16_does_not_reach_is_not_finite(number: float) -> None:
    w = np.ones((16, 2), np.float32)
    w[3, 1] = number
    assert not np.isfinite(block_scales(w, 4)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_no_scale_that_is_tried_is_better(bits: int) -> None:
    @settings(deadline=None, max_examples=100, database=None)
    @given(arrays(np.float32, (16, 3), elements=WEIGHTS))
    def least(w: Array) -> None:
        found = error(w, block_scales(w, bits), bits)
        extreme = np.where(-w.min(0) >= w.max(0), w.min(0), w.max(0))
        for t in tried(bits):
            assert (found <= error(w, (extreme / -t).astype(np.float16), bits) * np.float32(1 + 1e-5)).all()

    least()


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_of_what_codes_stand_for_are_the_same(bits: int) -> None:
    """A round trip: numbers that are codes times a scale lose nothing with it, in either direction of storing."""

    @settings(deadline=None, max_examples=100, database=None)
    @given(arrays(np.float32, (32, 6), elements=WEIGHTS), st.sampled_from([16, 32]))
    def round_trip(w: Array, block: int) -> None:
        scales = scales_of(w, bits, block, 0)
        codes = codes_of(w, scales, bits, block, 0)
        assert codes.min() >= -(1 << (bits - 1))
        assert codes.max() < 1 << (bits - 1)
        floats = floats_of(codes, scales, block, 0)
        again = codes_of(floats, scales, bits, block, 0)
        assert np.array_equal(again[floats != 0], codes[floats != 0])
        half = np.abs(np.repeat(scales.astype(np.float32), block, 0)) / 2
        inside = (codes > -(1 << (bits - 1))) & (codes < (1 << (bits - 1)) - 1)
        gap = np.abs(floats - w)
        assert (gap <= half * np.float32(1 + 1e-5))[inside & (half > 0)].all()

    round_trip()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(64, 48), (256, 1000), (96, 1)])
def test_the_transposed_matrix_has_the_same_codes(shape: tuple[int, int], dtype: type) -> None:
    w = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    scales = scales_of(w, 4, 32, 0)
    assert scales.shape == (shape[0] // 32, shape[1])
    turned = np.ascontiguousarray(w.T)
    assert np.array_equal(scales_of(turned, 4, 32, 1), scales.T)
    codes = codes_of(w, scales, 4, 32, 0)
    assert np.array_equal(codes_of(turned, scales.T.copy(), 4, 32, 1), codes.T)
    assert np.array_equal(floats_of(codes.T, scales.T, 32, 1), floats_of(codes, scales, 32, 0).T)


def test_the_search_gains_on_the_largest_over_seven() -> None:
    """On normal weights the error falls by more than a tenth; the negative control of the search."""
    w = np.random.default_rng(2).standard_normal((32, 4000)).astype(np.float32)
    plain = (np.abs(w).max(0) / 7).astype(np.float16)
    assert error(w, block_scales(w, 4), 4).sum() < 0.9 * error(w, plain, 4).sum()
