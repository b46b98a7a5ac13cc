"""KV caches of codes with scales: what is stored, what a row reads of it, and numbers that have no code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm

from hetero_sd.stored_kv import as_stored, codes_of
from targets.boards import load_board
from targets.cpu.kernels.attention import attention_cached
from targets.cpu.target import tvm_target
from targets.cpu.tile import CpuTile
from targets.kv_format import KV_FORMATS

Array = npt.NDArray[Any]
AVX2 = CpuTile(lanes=8, panel=16, accumulators=12, dot="pmadd")
NEON = CpuTile(lanes=4, panel=16, accumulators=24, dot="sdot")
AVX512 = CpuTile(lanes=16, panel=64, accumulators=24, dot="pmadd")
TILES = pytest.mark.parametrize("tile", [AVX2, NEON, AVX512], ids=["avx2", "neon", "avx512"])
F32 = np.float32
HEADS, KV_HEADS, DIM, CONTEXT, TOTAL, SCALE = 4, 2, 32, 32, 20, 0.2
ROWS = KV_FORMATS["int8"].scale_rows


@functools.cache
def compiled(func: Any) -> Callable[..., None]:
    target = tvm_target(load_board("host", measure=False).clusters[0].core)
    built = tvm.compile(func.with_attr("global_symbol", "main"), target=target)
    call: Callable[..., None] = built.mod["main"]
    return call


def texts(scale: float = 1.0) -> list[Array]:
    rng = np.random.default_rng(3)
    return [(scale * rng.standard_normal((TOTAL, h * DIM))).astype(F32) for h in (HEADS, KV_HEADS, KV_HEADS)]


def in_steps(tile: CpuTile, qkv: Sequence[Array], parts: Sequence[int]) -> tuple[Array, Array, Array]:
    """(y, keys, values) after steps of so many rows; stale memory is -1, a scale of which is not a number."""
    keys = tvm.runtime.tensor(np.full((1, KV_HEADS, CONTEXT // tile.lanes, DIM + ROWS, tile.lanes), -1, np.int8))
    values = tvm.runtime.tensor(np.full((1, KV_HEADS, CONTEXT, DIM), -1, np.int8))
    rows, pos = [], 0
    for n in parts:
        func = attention_cached(tile, n, HEADS, KV_HEADS, DIM, CONTEXT, SCALE, 0, 0.0, "int8")
        y = tvm.runtime.tensor(np.zeros((1, n, HEADS * DIM), F32))
        compiled(func)(*(tvm.runtime.tensor(x[None, pos : pos + n]) for x in qkv), keys, values, pos, y)
        rows.append(y.numpy()[0])
        pos += n
    return np.concatenate(rows), keys.numpy()[0], values.numpy()[0]


def attended(q: Array, k: Array, v: Array) -> Array:
    """Causal attention in float64; k and v [t, kv heads, dim]."""
    k, v = (np.repeat(x.astype(np.float64), HEADS // KV_HEADS, 1) for x in (k, v))
    s = np.einsum("thd,jhd->htj", q.reshape(TOTAL, HEADS, DIM), k) * SCALE
    s = np.where(np.tri(TOTAL, dtype=bool), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    y: Array = np.einsum("htj,jhd->thd", p / p.sum(-1, keepdims=True), v).reshape(TOTAL, HEADS * DIM)
    return y


def by_head(x: Array) -> Array:
    return x.reshape(TOTAL, KV_HEADS, DIM)


@TILES
def test_rows_attend_to_what_is_stored(tile: CpuTile) -> None:
    q, k, v = texts()
    whole, keys, values = in_steps(tile, (q, k, v), [TOTAL])
    rounded = [as_stored(by_head(x), "int8") for x in (k, v)]
    np.testing.assert_allclose(whole, attended(q, *rounded), atol=3e-6, rtol=0)
    assert np.abs(whole - attended(q, by_head(k), by_head(v))).max() > 1e-3  # the negative control
    for parts in ([1] * TOTAL, [8, 5, 5, 2]):  # tiles of 1, 2 and 3 rows
        for found, expected in zip(in_steps(tile, (q, k, v), parts), (whole, keys, values), strict=True):
            assert np.array_equal(found, expected), parts


@TILES
def test_codes_and_scales_are_numpys(tile: CpuTile) -> None:
    q, k, v = texts(40.0)
    k[3, :DIM], v[5, DIM:] = 0, 1e-38  # nothing, and less than has a code
    k[4, :DIM] *= 1e20
    _, keys, values = in_steps(tile, (q, k, v), [TOTAL])
    codes = keys[:, :, :DIM].transpose(0, 1, 3, 2).reshape(KV_HEADS, CONTEXT, DIM)[:, :TOTAL]
    scales = np.ascontiguousarray(keys[:, :, DIM:]).reshape(KV_HEADS, -1, 2, 4 * tile.lanes).view(F32)
    for x, stored, which in ((k, codes, 0), (v, values[:, :TOTAL], 1)):
        expected, scale = codes_of(by_head(x).transpose(1, 0, 2))
        assert np.array_equal(stored, expected)
        found = scales[:, :, which].reshape(KV_HEADS, CONTEXT)[:, :TOTAL]
        assert np.array_equal(found, scale[..., 0])
        assert np.abs(expected).max(-1).min() in (0, 127)
        assert not np.array_equal(found, np.roll(scale[..., 0], 1, 1))


@TILES
@pytest.mark.parametrize("number", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("which", ["key", "value"])
def test_a_number_that_is_not_finite_spoils_the_rows_that_see_it(tile: CpuTile, number: float, which: str) -> None:
    q, k, v = texts()
    (k if which == "key" else v)[4, 5] = number
    for parts in ([TOTAL], [1] * TOTAL):
        y = in_steps(tile, (q, k, v), parts)[0]
        seeing = y.reshape(TOTAL, HEADS, DIM)[4:, :2]
        assert not np.isfinite(seeing).any()
        assert np.isfinite(y[:4]).all()
        assert np.isfinite(y.reshape(TOTAL, HEADS, DIM)[:, 2:]).all()  # heads of another KV head
