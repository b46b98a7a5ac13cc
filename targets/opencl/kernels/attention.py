"""Attention over the in-place KV cache, of one sequence or of several; attention_parts.py says what is computed."""

from __future__ import annotations

import functools
from typing import Any

import tvm

from targets.opencl.kernels.attention_parts import SLOT, attention_of
from targets.opencl.tile import GpuTile


@functools.cache
def attention_cached(
    tile: GpuTile,
    n: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    scale: float,
    window: int,
    softcap: float,
    cache: str = "float32",
    slopes: tuple[float, ...] = (),
) -> Any:
    """The PrimFunc (q, k, v, key cache, value cache, pos, y, weights[r, heads, context], block[r, heads, blocks, 2]).

    window 0 means none: row t sees key j iff j <= pos + t, and j > pos + t - window where there is one. softcap c
    > 0 replaces a score s by c * tanh(s / c). context must be a multiple of 4. The last two are scratch, r =
    scratch_rows(n, heads, context). `cache` is the type in which keys and values are stored, a name of KV_FORMATS.
    `slopes`, one a head: ALiBi adds the head's to a score times (key - row), which is never positive.
    """
    sizes = (heads, kv_heads, head_dim, context, scale, window, softcap, cache, slopes)
    func = attention_of(tile, n, 1, False, *sizes)
    slot = func.params[SLOT]
    return func.specialize({slot: tvm.tirx.IntImm("int64", 0)})


@functools.cache
def attention_in_slot(
    tile: GpuTile,
    n: int,
    slots: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    scale: float,
    window: int,
    softcap: float,
    cache: str = "float32",
    slopes: tuple[float, ...] = (),
) -> Any:
    """The same of caches with `slots` slots: (q, k, v, key cache, value cache, slot, pos, y, weights, block)."""
    sizes = heads, kv_heads, head_dim, context, scale, window, softcap, cache, slopes
    return attention_of(tile, n, slots, False, *sizes)


@functools.cache
def attention_rows(
    tile: GpuTile,
    n: int,
    slots: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    scale: float,
    window: int,
    softcap: float,
    cache: str = "float32",
    slopes: tuple[float, ...] = (),
) -> Any:
    """The same with a slot and a position for each row, int64 [n]; a row that is the one before it stores nothing."""
    return attention_of(tile, n, slots, True, heads, kv_heads, head_dim, context, scale, window, softcap, cache, slopes)
