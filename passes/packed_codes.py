"""Codes of block-quantised weights in bytes, as MatMulNBits and GatherBlockQuantized store them: the low bits first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BITS = (2, 4, 8)  # of one code

Bytes = NDArray[np.uint8]


def unpack_codes(packed: Bytes, bits: int, width: int) -> Bytes:
    """[N, ...] with 8 / bits codes in a byte -> [N, width]."""
    packed = packed.reshape(packed.shape[0], -1)
    if bits < 8:
        parts = [packed >> shift & ((1 << bits) - 1) for shift in range(0, 8, bits)]
        packed = np.stack(parts, axis=-1).reshape(packed.shape[0], -1)
    return packed[:, :width]


def pack_codes(codes: Bytes, bits: int) -> Bytes:
    """[N, width] -> [N, ceil(width * bits / 8)]; what a last byte has beyond the width is 0."""
    per = 8 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per)))
    packed = padded[:, ::per].copy()
    for part in range(1, per):
        packed |= padded[:, part::per] << part * bits
    return packed
