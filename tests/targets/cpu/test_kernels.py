"""Every CPU kernel against numpy at even and odd sizes, on the tiles of AVX2 and NEON; rows never depend on n."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm

from passes.lower.pack import pack_quantised, swap_nibbles, to_panels
from passes.packed_codes import pack_codes, unpack_codes
from targets.boards import load_board
from targets.cpu.kernels.argmax import argmax
from targets.cpu.kernels.attention import attention_cached
from targets.cpu.kernels.elementwise import (
    add,
    add_bias,
    clip,
    gelu,
    gelu_mul,
    relu,
    scale,
    silu_mul,
    squared_relu,
    tanh,
    xielu,
)
from targets.cpu.kernels.embedding import embedding, embedding_nbits
from targets.cpu.kernels.linear import linear
from targets.cpu.kernels.linear_nbits import linear_nbits
from targets.cpu.kernels.norm import add_rms_norm, layer_norm, rms_norm
from targets.cpu.kernels.rope import rope
from targets.cpu.kernels.take import learned_positions, take_columns, take_row
from targets.cpu.linear_tile import linear_tile
from targets.cpu.target import tvm_target
from targets.cpu.tile import CpuTile, cpu_tile
from targets.kernels.code_tables import CODE_TABLES

Array = npt.NDArray[Any]
AVX2 = CpuTile(lanes=8, panel=16, accumulators=12, dot="pmadd")
NEON = CpuTile(lanes=4, panel=16, accumulators=24, dot="sdot")
AVX512 = CpuTile(lanes=16, panel=64, accumulators=24, dot="pmadd")
TILES = pytest.mark.parametrize("tile", [AVX2, NEON], ids=["avx2", "neon"])
DEEP = functools.partial(pytest.param, marks=pytest.mark.deep)
SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)  # more sizes: a minute of compiling in all
F32 = np.float32


@functools.cache
def _host_target() -> Any:
    return tvm_target(load_board("host", measure=False).clusters[0].core)


_COMPILED: dict[int, tuple[Any, Callable[..., None]]] = {}  # the kernels are cached, so their identity is a key


def compiled(func: Any) -> Callable[..., None]:
    # Vectors wider than the machine's are legal LLVM, so both tiles run on any host.
    if id(func) not in _COMPILED:
        built = tvm.compile(func.with_attr("global_symbol", "main"), target=_host_target())
        _COMPILED[id(func)] = func, built.mod["main"]
    return _COMPILED[id(func)][1]


def run(func: Any, *args: Any, out: tuple[tuple[int, ...], str]) -> Array:
    """Call a kernel whose last parameter is its output."""
    y = tvm.runtime.tensor(np.full(out[0], 77, out[1]))
    tensors = [tvm.runtime.tensor(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a for a in args]
    compiled(func)(*tensors, y)
    result: Array = y.numpy()
    return result


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


@TILES
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("k", "columns"), [SLOW(64, 48), (34, 50), SLOW(512, 96)])
def test_linear(tile: CpuTile, dtype: str, k: int, columns: int) -> None:
    w = normal(k, columns, seed=1).astype(dtype)
    rows = normal(1, 13, k)
    expected = rows.astype(np.float64) @ w.astype(np.float64)
    packed = to_panels(w, tile.panel)
    whole = {}
    for n in (1, 2, 3, 4, 5, 7, 8, 13):
        y = run(linear(tile, n, k, columns, dtype), rows[:, :n], packed, out=((1, n, columns), "float32"))
        np.testing.assert_allclose(y, expected[:, :n], atol=2e-6 * k, rtol=0)
        whole[n] = y
    for n, y in whole.items():
        assert np.array_equal(y, whole[13][:, :n]), f"rows of {n} differ from rows of 13"
    wrong = packed.copy()
    wrong[0, 1, 2] += 1  # the negative control: one weight off must show
    y = run(linear(tile, 1, k, columns, dtype), rows[:, :1], wrong, out=((1, 1, columns), "float32"))
    assert np.abs(y - expected[:, :1]).max() > 2e-6 * k


@TILES
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_row_tiles_take_turns_at_parts_of_the_weights(tile: CpuTile, dtype: str) -> None:
    """In the bits of rows alone, where a level-1 cache holds a few rows of the matrix, the last part fewer."""
    k, columns, n = 232, 50, 20
    small = replace(tile, l1d_bytes=4096)
    walk = linear_tile(small, n, k, -(-columns // tile.panel), 2 if dtype == "float16" else 4)
    assert walk.row_tiles > 1
    assert walk.part < k
    assert k % walk.part
    w, rows = normal(k, columns, seed=1).astype(dtype), normal(1, n, k)
    packed = to_panels(w, tile.panel)
    together = run(linear(small, n, k, columns, dtype), rows, packed, out=((1, n, columns), "float32"))
    for t in (0, 7, n - 1):
        alone = run(linear(small, 1, k, columns, dtype), rows[:, t : t + 1], packed, out=((1, 1, columns), "float32"))
        assert np.array_equal(together[:, t], alone[:, 0])
    packed[0, k - 1, 0] += 1  # the negative control: a weight of the last part shows
    wrong = run(linear(small, n, k, columns, dtype), rows, packed, out=((1, n, columns), "float32"))
    assert not np.array_equal(together, wrong)


def quantised(bits: int, k: int, columns: int, block: int, zeros: bool) -> tuple[dict[str, Array], Array]:
    """Random MatMulNBits tensors in ONNX's layout and the float32 weights [columns, k] they stand for."""
    rng = np.random.default_rng(3)
    blocks, per = -(-k // block), 8 // bits
    values = rng.integers(0, 1 << bits, (columns, blocks * block)).astype(np.uint8)
    scale = rng.uniform(0.01, 0.1, (columns, blocks)).astype(F32)
    zero = rng.integers(0, 1 << bits, (columns, blocks)).astype(np.uint8)

    z = zero if zeros else np.full_like(zero, 1 << (bits - 1))
    w = (values.astype(F32) - np.repeat(z, block, 1).astype(F32)) * np.repeat(scale, block, 1)
    q, packed_zero = pack_codes(values, bits).reshape(columns, blocks, block // per), pack_codes(zero, bits)
    onnx = {"q": q, "scale": scale, "zero": packed_zero}
    return onnx, w[:, :k]


@TILES
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("k", "block"), [SLOW(64, 32), SLOW(96, 128), (80, 32), SLOW(600, 1024)])
def test_linear_and_embedding_nbits(tile: CpuTile, bits: int, zeros: bool, k: int, block: int) -> None:
    columns, rows = 40, normal(1, 5, k)
    onnx, w = quantised(bits, k, columns, block, zeros)
    q = pack_quantised(onnx["q"], bits, k, tile.panel)
    scale = to_panels(onnx["scale"].T, tile.panel)
    values = unpack_codes(onnx["zero"], bits, scale.shape[1])
    zero = to_panels(values.T, tile.panel) if zeros else np.zeros((1, 1, 1), np.uint8)
    outputs = []
    for n in (1, 3, 5):
        func = linear_nbits(tile, n, k, columns, bits, block, "float32", zeros)
        y = run(func, rows[:, :n], q, scale, zero, out=((1, n, columns), "float32"))
        np.testing.assert_allclose(y, rows[:, :n] @ w.T, atol=1e-6 * max(k, 100), rtol=0)
        outputs.append(y)
    assert all(np.array_equal(y, outputs[-1][:, : y.shape[1]]) for y in outputs)
    ids = np.array([[0, 7, 8, 15, 39]])
    func = embedding_nbits(tile, 5, columns, k, bits, block, "float32", zeros)
    assert np.array_equal(run(func, q, scale, zero, ids, out=((1, 5, k), "float32"))[0], w[ids[0]])
    y = run(func, q, scale * F32(1.01), zero, ids, out=((1, 5, k), "float32"))
    assert not np.array_equal(y[0], w[ids[0]])


@pytest.mark.parametrize(
    "tile",
    [replace(AVX2, dot=""), replace(NEON, dot=""), cpu_tile(load_board("host", measure=False).clusters[0].core)],
    ids=["selects-8", "selects-4", "host"],
)
@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize(("k", "columns", "block"), [(96, 50, 32), SLOW(128, 48, 64)])
def test_linear_with_codes_of_a_table(tile: CpuTile, table: str, k: int, columns: int, block: int) -> None:
    """MatMulBnb4's: a weight is the number of its code times its block's largest; a byte's first code is high."""
    rng, rows = np.random.default_rng(5), normal(1, 5, k)
    codes = rng.integers(0, 16, (columns, k)).astype(np.uint8)
    absmax = rng.uniform(0.5, 2, (columns, k // block)).astype(F32)
    numbers = np.array(CODE_TABLES[table], F32)[codes] * np.repeat(absmax, block, 1)
    q = pack_quantised(swap_nibbles(codes[:, ::2] << 4 | codes[:, 1::2]), 4, k, tile.panel)
    scale, none = to_panels(absmax.T, tile.panel), np.zeros((1, 1, 1), np.uint8)
    identity = np.eye(k, dtype=F32)[None]  # every weight, bit for bit
    func = linear_nbits(tile, k, k, columns, 4, block, "float32", False, table=table)
    y = run(func, identity, q, scale, none, out=((1, k, columns), "float32"))
    assert np.array_equal(y[0].T, numbers)
    assert not np.array_equal(y[0].T, np.array(CODE_TABLES[table], F32)[codes ^ 1] * np.repeat(absmax, block, 1))
    outputs = []
    for n in (1, 3, 5):
        func = linear_nbits(tile, n, k, columns, 4, block, "float32", False, table=table)
        y = run(func, rows[:, :n], q, scale, none, out=((1, n, columns), "float32"))
        np.testing.assert_allclose(y, rows[:, :n] @ numbers.T, atol=1e-4, rtol=0)
        outputs.append(y)
    assert all(np.array_equal(y, outputs[-1][:, : y.shape[1]]) for y in outputs)


@TILES
@pytest.mark.parametrize("zero_dtype", ["float32", "float16"])
def test_zero_points_that_are_fractions(tile: CpuTile, zero_dtype: str) -> None:
    """HQQ's: a weight is (q - zero) * scale in float32; three blocks a column, the last one short."""
    bits, k, columns, block = 4, 80, 40, 32
    onnx, _ = quantised(bits, k, columns, block, zeros=False)
    fractions = (7 + 3 * normal(columns, 3, seed=4)).astype(zero_dtype)
    codes = unpack_codes(onnx["q"], bits, k).astype(F32)
    w = (codes - np.repeat(fractions.astype(F32), block, 1)[:, :k]) * np.repeat(onnx["scale"], block, 1)[:, :k]
    q, scale = pack_quantised(onnx["q"], bits, k, tile.panel), to_panels(onnx["scale"].T, tile.panel)
    zero, rows, outputs = to_panels(fractions.T, tile.panel), normal(1, 5, k), []
    for n in (1, 3, 5):
        func = linear_nbits(tile, n, k, columns, bits, block, "float32", True, zero_dtype)
        outputs.append(run(func, rows[:, :n], q, scale, zero, out=((1, n, columns), "float32")))
        np.testing.assert_allclose(outputs[-1], rows[:, :n] @ w.T, atol=1e-4, rtol=0)
    assert all(np.array_equal(y, outputs[-1][:, : y.shape[1]]) for y in outputs)
    ids = np.array([[0, 7, 8, 15, 39]])
    func = embedding_nbits(tile, 5, columns, k, bits, block, "float32", True, zero_dtype)
    assert np.array_equal(run(func, q, scale, zero, ids, out=((1, 5, k), "float32"))[0], w[ids[0]])
    rounded = np.round(zero)  # the negative control: the same zero points as whole numbers
    y = run(func, q, scale, rounded, ids, out=((1, 5, k), "float32"))
    assert np.abs(y[0] - w[ids[0]]).max() > 1e-3


@TILES
def test_embedding(tile: CpuTile) -> None:
    w = normal(50, 32).astype(np.float16)
    ids = np.array([[49, 0, 16]])
    y = run(embedding(tile, 3, 50, 32, "float16"), to_panels(w.T, tile.panel), ids, out=((1, 3, 32), "float32"))
    assert np.array_equal(y[0], w[ids[0]].astype(F32))


SLOPES = (0.5, 0.03, 0.7, 0.2)  # of four heads, of a key's position


def attention_reference(
    q: Array, k: Array, v: Array, scale: float, window: int, softcap: float, slopes: tuple[float, ...] = ()
) -> Array:
    """Causal attention, q [t, heads, d], k and v [t, kv heads, d], in float64."""
    t, heads, dim = q.shape
    share = heads // k.shape[1]
    s = np.einsum("thd,jhd->htj", q.astype(np.float64), np.repeat(k, share, 1).astype(np.float64)) * scale
    s = softcap * np.tanh(s / softcap) if softcap else s
    s = s + np.array(slopes)[:, None, None] * np.arange(t) if slopes else s
    back = np.arange(t)[:, None] - np.arange(t)[None]
    s = np.where((back < 0) | (back >= (window or t)), -np.inf, s)
    p = np.exp(s - s.max(-1, keepdims=True))
    y: Array = np.einsum("htj,jhd->thd", p / p.sum(-1, keepdims=True), np.repeat(v, share, 1).astype(np.float64))
    return y.reshape(t, heads * dim)


@TILES
@pytest.mark.parametrize(
    ("window", "softcap", "slopes"),
    [(0, 0.0, ()), DEEP(5, 0.0, ()), DEEP(0, 3.0, ()), (9, 2.0, ()), DEEP(9, 0.0, SLOPES)],
)
@pytest.mark.slow
def test_attention_cached(tile: CpuTile, window: int, softcap: float, slopes: tuple[float, ...]) -> None:
    heads, kv_heads, dim, context, total = 4, 2, 32, 32, 20
    q, k, v = normal(total, heads * dim), normal(total, kv_heads * dim, seed=1), normal(total, kv_heads * dim, seed=2)
    expected = attention_reference(
        *(q.reshape(total, heads, dim), k.reshape(total, kv_heads, dim), v.reshape(total, kv_heads, dim)),
        *(0.2, window, softcap, slopes),
    )

    def in_steps(parts: list[int], scale: float = 0.2) -> Array:
        # stale memory is NaN: nothing beyond the written rows may leak
        keys = tvm.runtime.tensor(np.full((1, kv_heads, context // tile.lanes, dim, tile.lanes), np.nan, F32))
        values = tvm.runtime.tensor(np.full((1, kv_heads, context, dim), np.nan, F32))
        rows, pos = [], 0
        for n in parts:
            func = attention_cached(tile, n, heads, kv_heads, dim, context, scale, window, softcap, slopes=slopes)
            part = (x[None, pos : pos + n] for x in (q, k, v))
            rows.append(run(func, *part, keys, values, pos, out=((1, n, heads * dim), "float32"))[0])
            pos += n
        return np.concatenate(rows)

    whole = in_steps([20])
    np.testing.assert_allclose(whole, expected, atol=2e-6, rtol=0)
    for parts in ([1] * 20, [8, 5, 5, 2], [3] * 6 + [2]):  # tiles of 1, 2 and 3 rows
        assert np.array_equal(in_steps(parts), whole), parts
    if not window:
        assert np.abs(in_steps([20], scale=0.21) - expected).max() > 1e-4


@TILES
def test_attention_with_alibi(tile: CpuTile) -> None:
    """Of heads that share keys, too; a row's bits are its own; other heads' slopes are another answer."""
    heads, kv_heads, dim, context, total = 4, 2, 8, 32, 20
    q, k, v = normal(total, heads * dim), normal(total, kv_heads * dim, seed=1), normal(total, kv_heads * dim, seed=2)
    whole = (q.reshape(total, heads, dim), k.reshape(total, kv_heads, dim), v.reshape(total, kv_heads, dim))

    def in_steps(parts: list[int]) -> Array:
        keys = tvm.runtime.tensor(np.full((1, kv_heads, context // tile.lanes, dim, tile.lanes), np.nan, F32))
        values = tvm.runtime.tensor(np.full((1, kv_heads, context, dim), np.nan, F32))
        rows, pos = [], 0
        for n in parts:
            func = attention_cached(tile, n, heads, kv_heads, dim, context, 0.2, 0, 0.0, slopes=SLOPES)
            part = (x[None, pos : pos + n] for x in (q, k, v))
            rows.append(run(func, *part, keys, values, pos, out=((1, n, heads * dim), "float32"))[0])
            pos += n
        return np.concatenate(rows)

    at_once = in_steps([20])
    np.testing.assert_allclose(at_once, attention_reference(*whole, 0.2, 0, 0.0, SLOPES), atol=2e-6, rtol=0)
    assert np.array_equal(in_steps([8, 5, 5, 1, 1]), at_once)
    for others in ((), SLOPES[::-1], (*SLOPES[:3], 0.21)):
        assert np.abs(at_once - attention_reference(*whole, 0.2, 0, 0.0, others)).max() > 1e-4


@pytest.mark.parametrize(("tile", "width"), [(AVX2, 20), (AVX512, 24), (NEON, 7)], ids=["avx2", "avx512", "neon"])
def test_rows_that_are_no_whole_vectors(tile: CpuTile, width: int) -> None:
    """Kernels with a narrower vector have the answer of those with whole ones."""
    n, padded = 3, 4 * tile.lanes
    x, r = normal(1, n, width), normal(1, n, width, seed=1)
    w, b = normal(width, seed=2), normal(width, seed=3)
    shape = (x.shape, "float32")
    wide = [np.concatenate([a, np.zeros((*a.shape[:-1], padded - width), F32)], -1) for a in (x, r, b)]
    wide_shape = (wide[0].shape, "float32")
    assert np.array_equal(
        run(silu_mul(tile, n, width), x, r, out=shape),
        run(silu_mul(tile, n, padded), *wide[:2], out=wide_shape)[..., :width],
    )
    assert np.array_equal(run(add_bias(tile, n, width), x, b, out=shape), x + b)
    assert np.array_equal(run(scale(tile, n, width, 8.5), x, out=shape), F32(8.5) * x)
    for y in (x, x + F32(2)):
        square = (y.astype(np.float64) ** 2).mean(-1, keepdims=True)
        np.testing.assert_allclose(
            run(rms_norm(tile, n, width, 1, 1e-5), y, w, out=shape), y / np.sqrt(square + 1e-5) * w, atol=2e-6
        )
        mean = y.astype(np.float64).mean(-1, keepdims=True)
        expected = (y - mean) / np.sqrt(y.astype(np.float64).var(-1, keepdims=True) + 1e-5) * w + b
        np.testing.assert_allclose(run(layer_norm(tile, n, width, 1e-5), y, w, b, out=shape), expected, atol=3e-6)
    heads, kv_heads, context = 4, 2, 2 * tile.lanes
    q, k, v = normal(n, heads * width), normal(n, kv_heads * width, seed=1), normal(n, kv_heads * width, seed=2)
    seen = attention_reference(
        *(q.reshape(n, heads, width), k.reshape(n, kv_heads, width), v.reshape(n, kv_heads, width)), *(0.2, 0, 0.0)
    )
    keys = tvm.runtime.tensor(np.full((1, kv_heads, 2, width, tile.lanes), np.nan, F32))
    values = tvm.runtime.tensor(np.full((1, kv_heads, context, width), np.nan, F32))
    attend = attention_cached(tile, n, heads, kv_heads, width, context, 0.2, 0, 0.0)
    y = run(attend, q[None], k[None], v[None], keys, values, 0, out=((1, n, heads * width), "float32"))[0]
    np.testing.assert_allclose(y, seen, atol=2e-6, rtol=0)
    assert np.abs(y - attention_reference(*(a.reshape(n, -1, width) for a in (q, k, v)), 0.21, 0, 0.0)).max() > 1e-4


@TILES
def test_keys_and_values_in_float16(tile: CpuTile) -> None:
    """A row attends to what is stored: every key and value rounded, its own among them."""
    heads, kv_heads, dim, context, total = 4, 2, 32, 16, 12
    q, k, v = normal(total, heads * dim), normal(total, kv_heads * dim, seed=1), normal(total, kv_heads * dim, seed=2)

    def reference(dtype: str) -> Array:
        stored = (x.astype(dtype).astype(F32).reshape(total, kv_heads, dim) for x in (k, v))
        return attention_reference(q.reshape(total, heads, dim), *stored, 0.2, 0, 0.0)

    def in_steps(parts: list[int]) -> Array:
        keys = tvm.runtime.tensor(np.full((1, kv_heads, context // tile.lanes, dim, tile.lanes), np.nan, np.float16))
        values = tvm.runtime.tensor(np.full((1, kv_heads, context, dim), np.nan, np.float16))
        rows, pos = [], 0
        for n in parts:
            func = attention_cached(tile, n, heads, kv_heads, dim, context, 0.2, 0, 0.0, "float16")
            part = (x[None, pos : pos + n] for x in (q, k, v))
            rows.append(run(func, *part, keys, values, pos, out=((1, n, heads * dim), "float32"))[0])
            pos += n
        return np.concatenate(rows)

    whole = in_steps([12])
    np.testing.assert_allclose(whole, reference("float16"), atol=2e-6, rtol=0)
    assert np.array_equal(in_steps([1] * 12), whole)
    assert np.abs(whole - reference("float32")).max() > 2e-5
    for key in (7e4, -7e4):  # no float16: the rows that see it are spoiled, whatever its score
        k[4, 5] = key
        for y in (in_steps([12]), in_steps([1] * 12)):
            assert np.isfinite(y[:4]).all()
            assert not np.isfinite(y[4:, [5, dim + 5]]).any()


@TILES
def test_norms(tile: CpuTile) -> None:
    x, r, w = normal(1, 3, 128), normal(1, 3, 128, seed=1), normal(128, seed=2)

    def norm(x: Array, w: Array) -> Array:
        y: Array = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * w
        return y

    shape = ((1, 3, 128), "float32")
    y = run(rms_norm(tile, 3, 128, 1, 1e-5), x, w, out=shape)
    np.testing.assert_allclose(y, norm(x, w), atol=2e-6)
    assert np.array_equal(run(rms_norm(tile, 1, 128, 1, 1e-5), x[:, :1], w, out=((1, 1, 128), "float32")), y[:, :1])
    parts = x.reshape(1, 3, 4, 32)
    y = run(rms_norm(tile, 3, 128, 4, 1e-5), x, w[:32], out=shape)
    np.testing.assert_allclose(y, norm(parts, w[:32]).reshape(1, 3, 128), atol=2e-6)
    total = tvm.runtime.tensor(np.zeros(shape[0], F32))
    y = run(add_rms_norm(tile, 3, 128, 1e-5), x, r, w, total, out=shape)
    assert np.array_equal(total.numpy(), x + r)
    np.testing.assert_allclose(y, norm(x + r, w), atol=2e-6)
    assert np.abs(run(rms_norm(tile, 3, 128, 1, 1e-2), x, w, out=shape) - norm(x, w)).max() > 1e-4


@TILES
def test_elementwise(tile: CpuTile) -> None:
    a, b, bias = 5 * normal(1, 3, 64), normal(1, 3, 64, seed=1), normal(64, seed=2)
    shape = (a.shape, "float32")
    assert np.array_equal(run(add(tile, 3, 64), a, b, out=shape), a + b)
    assert np.array_equal(run(add_bias(tile, 3, 64), a, bias, out=shape), a + bias)
    expected = a / (1 + np.exp(-a.astype(np.float64))) * b
    np.testing.assert_allclose(run(silu_mul(tile, 3, 64), a, b, out=shape), expected, atol=2e-6)
    extreme = np.full_like(a, -200.0)
    assert np.isfinite(run(silu_mul(tile, 3, 64), extreme, b, out=shape)).all()


def rotated(x: Array, cos: Array, sin: Array, rotary_dim: int, interleaved: bool) -> Array:
    """x [n, heads, dim] with pairs of each head turned; cos, sin [n, rotary_dim / 2]."""
    half = np.arange(rotary_dim // 2)
    first, second = (2 * half, 2 * half + 1) if interleaved else (half, half + rotary_dim // 2)
    a, b, c, s = x[..., first], x[..., second], cos[:, None], sin[:, None]
    y = x.copy()
    y[..., first], y[..., second] = a * c - b * s, b * c + a * s
    return y


@TILES
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [32, 24, 10])
def test_rope(tile: CpuTile, rotary_dim: int, interleaved: bool) -> None:
    half, x = rotary_dim // 2, normal(1, 3, 4 * 32)
    cos, sin = normal(64, half, seed=1), normal(64, half, seed=2)
    expected = rotated(x.reshape(3, 4, 32), cos[5:8], sin[5:8], rotary_dim, interleaved).reshape(x.shape)

    def kernel(pos: int, pairs: bool) -> Array:
        return run(rope(tile, 3, 4, 32, rotary_dim, 64, pairs), x, cos, sin, pos, out=(x.shape, "float32"))

    np.testing.assert_allclose(kernel(5, interleaved), expected, atol=2e-6)
    for control in (kernel(6, interleaved), kernel(5, not interleaved)):
        assert np.abs(control - expected).max() > 0.1


@TILES
@pytest.mark.parametrize("vocab", [64, 50, 3])
def test_argmax_takes_the_lowest_of_equals(tile: CpuTile, vocab: int) -> None:
    logits = normal(1, 4, vocab)
    logits[0, 1, [vocab - 1, vocab // 2]] = 9
    logits[0, 2] = -7
    logits[0, 3, vocab - 1] = 8
    ids = run(argmax(tile, 4, vocab), logits, out=((1, 4), "int64"))
    assert ids[0].tolist() == logits[0].argmax(-1).tolist()


@TILES
@pytest.mark.parametrize("vocab", [64, 50, 3])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_argmax_of_a_row_that_is_not_finite_is_minus_one(tile: CpuTile, vocab: int, bad: float) -> None:
    """Wherever it stands, and in its row alone; the largest finite number is one."""
    for at in sorted({0, 2, vocab // 2, vocab - 1}):
        logits = normal(1, 3, vocab)
        logits[0, 0, at], logits[0, 2, at] = np.finfo(F32).max, np.finfo(F32).min
        finite = run(argmax(tile, 3, vocab), logits, out=((1, 3), "int64"))[0]
        assert finite.tolist() == logits[0].argmax(-1).tolist()
        logits[0, 1, at] = bad
        ids = run(argmax(tile, 3, vocab), logits, out=((1, 3), "int64"))[0]
        assert ids.tolist() == [finite[0], -1, finite[2]]


def test_take() -> None:
    x = normal(1, 4, 24)
    assert np.array_equal(run(take_row(AVX2, 4, 24), x, 2, out=((1, 1, 24), "float32"))[0, 0], x[0, 2])
    assert np.array_equal(run(take_columns(AVX2, 4, 24, 8, 16), x, out=((1, 4, 16), "float32")), x[:, :, 8:])


def test_tiles_never_spill() -> None:
    for board in ("imx95", "rk3588", "rk3566", "rpi5", "host"):
        for cluster in load_board(board, measure=False).clusters:
            tile = cpu_tile(cluster.core)
            assert tile.panel % tile.lanes == 0
            for n in range(1, 33):
                used = tile.rows(n) * tile.panel_vectors * linear_tile(tile, n, 512, 64, 4).side
                assert used <= tile.accumulators < cluster.core.vector_registers
                assert -(-n // tile.rows(n)) * tile.rows(n) < n + tile.rows(n)


def xielu_reference(x: np.ndarray, positive: float, negative: float, beta: float) -> np.ndarray:
    return np.where(x > 0, positive * x**2, negative * (np.expm1(np.minimum(x, 0)) - x)) + beta * x


@TILES
def test_activations(tile: CpuTile) -> None:
    x = np.concatenate([np.linspace(-12, 12, 496), np.linspace(-1e-3, 1e-3, 16)]).astype(F32).reshape(1, 2, 256)
    up, wide = normal(1, 2, 256, seed=1), x.astype(np.float64)
    erf = np.vectorize(math.erf)(wide / 2**0.5)
    by_tanh = 0.5 * wide * (1 + np.tanh((2 / np.pi) ** 0.5 * (wide + 0.044715 * wide**3)))
    rounded = 0.5 * wide * (1 + np.tanh(0.796875 * (wide + 0.0446 * wide**3)))  # constants of an export
    assert np.abs(rounded - by_tanh).max() > 1e-4
    cases = [
        (gelu(tile, 2, 256, True), (x,), by_tanh),
        (gelu(tile, 2, 256, False), (x,), 0.5 * wide * (1 + erf)),
        (gelu_mul(tile, 2, 256, True), (x, up), by_tanh * up),
        (gelu(tile, 2, 256, True, 0.796875, 0.0446), (x,), rounded),
        (gelu_mul(tile, 2, 256, True, 0.796875, 0.0446), (x, up), rounded * up),
        (relu(tile, 2, 256), (x,), np.maximum(wide, 0)),
        (squared_relu(tile, 2, 256), (x,), np.maximum(wide, 0) ** 2),
        (tanh(tile, 2, 256), (x,), np.tanh(wide)),
        (clip(tile, 2, 256, -1.5, 2.5), (x,), np.clip(wide, -1.5, 2.5)),
        (xielu(tile, 2, 256, 0.8, 1.3, 0.5), (x,), xielu_reference(wide, 0.8, 1.3, 0.5)),
        (scale(tile, 2, 256, 8.5), (x,), 8.5 * wide),
    ]
    for func, args, expected in cases:
        y = run(func, *args, out=(x.shape, "float32"))
        np.testing.assert_allclose(y, expected, atol=2e-6, rtol=1e-6)
    wrong = run(xielu(tile, 2, 256, 0.8, 1.3, 0.5), x, out=(x.shape, "float32"))
    assert np.abs(wrong - xielu_reference(wide, 0.8, 1.31, 0.5)).max() > 1e-3
    wrong = run(gelu(tile, 2, 256, False), x, out=(x.shape, "float32"))
    assert np.abs(wrong - by_tanh).max() > 1e-4  # the negative control: the two GELUs are told apart
    row = run(gelu(tile, 1, 256, True), x[:, :1], out=((1, 1, 256), "float32"))
    assert np.array_equal(row, run(gelu(tile, 2, 256, True), x, out=(x.shape, "float32"))[:, :1])


@TILES
def test_relu_of_what_is_not_finite(tile: CpuTile) -> None:
    """NaN stays, so that the check of the logits sees it; minus infinity becomes 0 before it is squared."""
    x = np.resize(np.array([-np.inf, np.nan, np.inf, -0.0, -1, 2], F32), (1, 2, 32))
    cases = [
        (relu(tile, 2, 32), [0, np.nan, np.inf, 0, 0, 2]),
        (squared_relu(tile, 2, 32), [0, np.nan, np.inf, 0, 0, 4]),
        (clip(tile, 2, 32, -0.5, 1.5), [-0.5, np.nan, 1.5, 0, -0.5, 1.5]),
        (xielu(tile, 2, 32, 0.5, 0.0, 1.0), [-np.inf, np.nan, np.inf, 0, -1, 4]),
    ]
    for func, expected in cases:
        y = run(func, x, out=(x.shape, "float32"))
        assert np.array_equal(y, np.resize(np.array(expected, F32), x.shape), equal_nan=True)
        assert not np.array_equal(y, x, equal_nan=True)


@TILES
def test_layer_norm(tile: CpuTile) -> None:
    x, w, b = normal(1, 3, 64) + F32(2), normal(64, seed=1), normal(64, seed=2)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5) * w + b
    y = run(layer_norm(tile, 3, 64, 1e-5), x, w, b, out=(x.shape, "float32"))
    np.testing.assert_allclose(y, expected, atol=3e-6)
    row = run(layer_norm(tile, 1, 64, 1e-5), x[:, 1:2], w, b, out=((1, 1, 64), "float32"))
    assert np.array_equal(row, y[:, 1:2])
    control = run(layer_norm(tile, 3, 64, 1e-2), x, w, b, out=(x.shape, "float32"))
    assert np.abs(control - expected).max() > 3e-6


@TILES
@pytest.mark.parametrize(("groups", "width"), [(4, 64), (3, 39), (5, 60)])
@pytest.mark.parametrize("own", [False, True])
def test_layer_norm_of_parts_of_a_row(tile: CpuTile, groups: int, width: int, own: bool) -> None:
    """Each part of a row, a head, is normalised alone; with `own` by weights of its own."""
    rows = groups if own else 1
    x, w, b = normal(1, 3, width) + F32(2), normal(rows, width // groups, seed=1), normal(rows, width // groups, seed=2)
    parts = x.astype(np.float64).reshape(1, 3, groups, -1)
    centred = parts - parts.mean(-1, keepdims=True)
    expected = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w + b).reshape(x.shape)
    flat, out = (w.reshape(-1), b.reshape(-1)), (x.shape, "float32")
    y = run(layer_norm(tile, 3, width, 1e-5, groups, own), x, *flat, out=out)
    np.testing.assert_allclose(y, expected, atol=3e-6)
    row = run(layer_norm(tile, 1, width, 1e-5, groups, own), x[:, 1:2], *flat, out=((1, 1, width), "float32"))
    assert np.array_equal(row, y[:, 1:2])
    whole = [np.resize(v, width) for v in flat]
    control = run(layer_norm(tile, 3, width, 1e-5), x, *whole, out=out)
    assert np.abs(control - expected).max() > 0.1  # the row as one part


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_learned_positions(dtype: str) -> None:
    w, ids = normal(9, 6).astype(dtype), np.zeros((1, 3), np.int64)
    y = run(learned_positions(AVX2, 3, 9, 6, dtype), w, ids, 4, out=((1, 3, 6), "float32"))
    assert np.array_equal(y[0], w[4:7].astype(F32))
    assert not np.array_equal(y[0], w[3:6].astype(F32))
