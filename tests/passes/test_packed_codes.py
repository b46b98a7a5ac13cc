"""Codes in bytes: as onnxruntime reads them, and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.packed_codes import BITS, pack_codes, unpack_codes


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [
        (2, [1, 2, 3, 0, 2], [0b00_11_10_01, 0b10]),
        (4, [1, 2, 15], [0x21, 0x0F]),
        (8, [1, 255], [1, 255]),
    ],
)
def test_the_low_bits_come_first(bits: int, codes: list[int], packed: list[int]) -> None:
    given = np.array([codes], np.uint8)
    assert pack_codes(given, bits).tolist() == [packed]
    assert unpack_codes(np.array([packed], np.uint8), bits, len(codes)).tolist() == [codes]


@given(st.sampled_from(BITS), st.integers(1, 3), st.integers(1, 40), st.integers(0, 99))
def test_back_again(bits: int, rows: int, width: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (rows, width)).astype(np.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (rows, -(-width * bits // 8))
    assert np.array_equal(unpack_codes(packed, bits, width), codes)
    assert not np.array_equal(unpack_codes(packed ^ 1, bits, width), codes)  # the negative control
