"""Symmetric quantisation in blocks: a scale for each block by search, codes, and the numbers that they stand for.

A block of weights w with the scale s has codes q = round(w (1 / s)), cut to -2^(b-1) .. 2^(b-1) - 1, and stands for
q s. Let e be its number of largest magnitude. The search tries s = -e / t for t = 2^(b-1) - 1 in steps of 1/4, so that
e gets the code -t, or the last one where -t is beyond it: with the first t codes of both signs reach as far, the next
ones use the code that only one sign has, and the last ones cut e for finer steps of the rest. That with the least
squared error of the block is taken, of equal ones the first. Scales are rounded to float16 before they are tried.

All is float32, one rounding an operation, and errors are added in the order of the block: the same weights give the
same codes on every machine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

STEPS = {4: 13, 8: 5}  # scales that are tried: t up to 10 of 4 bits, where a block's last number is cut by a fifth
_STEP = 0.25
_AT_ONCE = 1 << 15  # weights of which all arrays fit a core's L2 cache


def tried(bits: int) -> Array:
    """The t that the search tries, float32."""
    return np.float32((1 << (bits - 1)) - 1) + np.arange(STEPS[bits], dtype=np.float32) * np.float32(_STEP)


def block_codes(w: Array, scale: Array, bits: int) -> Array:
    """Codes, float32, of blocks [block, m] with scales float32 [m]; 0 where the scale is."""
    middle = np.float32(1 << (bits - 1))
    codes = w * (np.float32(1) / np.where(scale == 0, np.float32(np.inf), scale))
    np.rint(codes, out=codes)
    np.maximum(codes, -middle, out=codes)
    np.minimum(codes, middle - 1, out=codes)
    return codes


def block_scales(w: Array, bits: int) -> Array:
    """Scales float16 [m] of blocks float32 [block, m]; infinite where float16 does not reach."""
    high, low = w.max(0), w.min(0)
    extreme = np.where(-low >= high, low, high)
    best = np.zeros(extreme.shape, np.float16)
    least = np.full(extreme.shape, np.inf, np.float32)
    for t in tried(bits):
        with np.errstate(over="ignore"):
            scale = (extreme / -t + np.float32(0)).astype(np.float16)  # no -0
        if not np.isfinite(scale).all():
            return scale
        wide = scale.astype(np.float32)
        gap = block_codes(w, wide, bits)
        gap *= wide
        gap -= w
        gap *= gap
        error = gap.sum(0)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return best


def _parts(shape: tuple[int, ...], block: int, axis: int) -> Iterator[tuple[Any, Any]]:
    """(index of the scales, index of the weights) of parts of a matrix."""
    if axis == 0:
        width = max(1, _AT_ONCE // block)
        for b in range(shape[0] // block):
            for start in range(0, shape[1], width):
                columns = slice(start, start + width)
                yield (b, columns), (slice(b * block, (b + 1) * block), columns)
        return
    rows = max(1, _AT_ONCE // shape[1])
    for start in range(0, shape[0], rows):
        yield slice(start, start + rows), slice(start, start + rows)


def _blocks(w: Array, part: Any, block: int, axis: int) -> Array:
    """Float32 [block, m]."""
    found = np.asarray(w[part], np.float32)
    return np.ascontiguousarray(found if axis == 0 else found.reshape(-1, block).T)


def _each(work: Callable[[tuple[Any, Any]], None], parts: Iterator[tuple[Any, Any]]) -> None:
    """Parts side by side on all CPUs; no part reads what another one writes."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(work, parts):
            pass


def scales_of(w: Array, bits: int, block: int, axis: int) -> Array:
    """Scales float16 of a matrix whose blocks run along `axis`: its shape, that axis divided by `block`."""
    scales = np.empty([n // block if i == axis else n for i, n in enumerate(w.shape)], np.float16)

    def work(indices: tuple[Any, Any]) -> None:
        where, part = indices
        scales[where] = block_scales(_blocks(w, part, block, axis), bits).reshape(scales[where].shape)

    _each(work, _parts(w.shape, block, axis))
    return scales


def codes_of(w: Array, scales: Array, bits: int, block: int, axis: int) -> Array:
    """Codes int8, of the shape of the matrix."""
    codes = np.empty(w.shape, np.int8)

    def work(indices: tuple[Any, Any]) -> None:
        where, part = indices
        found = block_codes(_blocks(w, part, block, axis), scales[where].reshape(-1).astype(np.float32), bits)
        codes[part] = found if axis == 0 else found.T.reshape(codes[part].shape)

    _each(work, _parts(w.shape, block, axis))
    return codes


def floats_of(codes: Array, scales: Array, block: int, axis: int) -> Array:
    """What codes and scales stand for, float32; every product is exact."""
    wide = np.repeat(scales.astype(np.float32), block, axis=axis)
    wide *= codes
    return wide
