"""Every OpenCL kernel against numpy at even and odd sizes; rows split into steps are the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from requirements import need_program

from passes.packed_codes import pack_codes
from targets.boards import load_board
from targets.opencl.tile import GpuTile, gpu_tile

Array = npt.NDArray[Any]
MALI, SMALL = GpuTile(), GpuTile(group=5, accumulators=16)


def tile_name(value: Any) -> str | None:
    """The id of a tile in a test's name."""
    return {MALI: "MALI", SMALL: "SMALL"}[value] if isinstance(value, GpuTile) else None


F32 = np.float32
Run = Any  # the fixture's Kernels, see conftest.py


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


@pytest.mark.parametrize(
    ("tile", "dtype", "k", "columns"),
    [
        (MALI, "float32", 64, 48),
        pytest.param(SMALL, "float32", 34, 50, marks=pytest.mark.slow),
        (MALI, "float16", 34, 50),
        pytest.param(SMALL, "float16", 64, 48, marks=pytest.mark.slow),
    ],
    ids=tile_name,
)
def test_linear(run: Run, tile: GpuTile, dtype: str, k: int, columns: int) -> None:
    from passes.lower.pack import to_panels
    from targets.opencl.kernels.linear import linear

    w = normal(k, columns, seed=1).astype(dtype)
    w[3, 4:9] = [6e-8, -3e-7, 65504, 0, -0.0]  # subnormal, largest and zero as float16
    rows = normal(1, 17, k)
    rows[:, :, 3] *= 1e-3
    expected = rows.astype(np.float64) @ w.astype(np.float64)
    packed = to_panels(w, tile.panel)
    whole = {}
    for n in (1, 2, 5, 16, 17):
        y = run(linear(tile, n, k, columns, dtype), rows[:, :n], packed, out=((1, n, columns), "float32"))
        np.testing.assert_allclose(y, expected[:, :n], atol=2e-6 * k, rtol=1e-6)
        whole[n] = y
    for n, y in whole.items():
        assert np.array_equal(y, whole[17][:, :n]), f"rows of {n} differ from rows of 17"
    wrong = packed.copy()
    wrong[0, 1, 2] += 1  # the negative control: one weight off must show
    y = run(linear(tile, 1, k, columns, dtype), rows[:, :1], wrong, out=((1, 1, columns), "float32"))
    assert np.abs(y - expected[:, :1]).max() > 2e-6 * k


def quantised(bits: int, k: int, columns: int, block: int, zeros: bool) -> tuple[dict[str, Array], Array]:
    """Random MatMulNBits tensors in ONNX's layout and the float32 weights [columns, k] they stand for."""
    rng = np.random.default_rng(3)
    blocks, per = -(-k // block), 8 // bits
    values = rng.integers(0, 1 << bits, (columns, blocks * block)).astype(np.uint8)
    scale = rng.uniform(0.01, 0.1, (columns, blocks)).astype(F32)
    zero = rng.integers(0, 1 << bits, (columns, blocks)).astype(np.uint8)
    q = pack_codes(values, bits)
    z = zero if zeros else np.full_like(zero, 1 << (bits - 1))
    w = (values.astype(F32) - np.repeat(z, block, 1).astype(F32)) * np.repeat(scale, block, 1)
    return {"q": q.reshape(columns, blocks, block // per), "scale": scale, "zero": zero}, w[:, :k]


@pytest.mark.parametrize(
    ("tile", "bits", "zeros", "k", "block", "scale_dtype"),
    [
        (MALI, 4, False, 96, 128, "float32"),
        (SMALL, 4, True, 80, 32, "float16"),
        (MALI, 8, True, 80, 32, "float32"),
        (SMALL, 8, False, 96, 128, "float16"),
        (MALI, 2, False, 96, 128, "float16"),
        (SMALL, 2, True, 80, 32, "float32"),
    ],
    ids=tile_name,
)
def test_linear_and_embedding_nbits(
    run: Run, tile: GpuTile, bits: int, zeros: bool, k: int, block: int, scale_dtype: str
) -> None:
    from passes.lower.pack import pack_quantised, to_panels
    from targets.opencl.kernels.embedding import embedding_nbits
    from targets.opencl.kernels.linear_nbits import linear_nbits

    columns, rows = 41, normal(1, 5, k)
    onnx, w = quantised(bits, k, columns, block, zeros)
    if scale_dtype == "float16":
        halved = onnx["scale"].astype(np.float16)
        w = w / np.repeat(onnx["scale"], block, 1)[:, :k] * np.repeat(halved.astype(F32), block, 1)[:, :k]
        onnx["scale"] = halved
    q = pack_quantised(onnx["q"], bits, k, tile.panel)
    scale = to_panels(onnx["scale"].T, tile.panel)
    zero = to_panels(onnx["zero"].T, tile.panel) if zeros else np.zeros((1, 1, 1), np.uint8)
    outputs = []
    for n in (1, 5):
        func = linear_nbits(tile, n, k, columns, bits, block, scale_dtype, zeros)
        y = run(func, rows[:, :n], q, scale, zero, out=((1, n, columns), "float32"))
        np.testing.assert_allclose(y, rows[:, :n] @ w.T, atol=1e-3, rtol=1e-5)
        outputs.append(y)
    assert all(np.array_equal(y, outputs[-1][:, : y.shape[1]]) for y in outputs)
    ids = np.array([[0, 7, 8, 15, 40]])
    func = embedding_nbits(tile, 5, columns, k, bits, block, scale_dtype, zeros)
    y = run(func, q, scale, zero, ids, out=((1, 5, k), "float32"))
    np.testing.assert_allclose(y[0], w[ids[0]], rtol=1e-6)
    other = (scale.astype(F32) * F32(1.01)).astype(scale.dtype)
    y = run(func, q, other, zero, ids, out=((1, 5, k), "float32"))
    assert np.abs(y[0] - w[ids[0]]).max() > 1e-3


@pytest.mark.parametrize(("tile", "table"), [(MALI, "nf4"), (SMALL, "fp4")], ids=tile_name)
def test_linear_with_codes_of_a_table(run: Run, tile: GpuTile, table: str) -> None:
    """MatMulBnb4's: a weight is the number of its code times its block's largest; a byte's first code is high."""
    from passes.lower.pack import pack_quantised, swap_nibbles, to_panels
    from targets.kernels.code_tables import CODE_TABLES
    from targets.opencl.kernels.linear_nbits import linear_nbits

    rng, k, columns, block = np.random.default_rng(5), 96, 41, 32
    codes = rng.integers(0, 16, (columns, k)).astype(np.uint8)
    absmax = rng.uniform(0.5, 2, (columns, k // block)).astype(F32)
    numbers = np.array(CODE_TABLES[table], F32)[codes] * np.repeat(absmax, block, 1)
    q = pack_quantised(swap_nibbles(codes[:, ::2] << 4 | codes[:, 1::2]), 4, k, tile.panel)
    scale, none = to_panels(absmax.T, tile.panel), np.zeros((1, 1, 1), np.uint8)
    rows = np.concatenate([np.eye(k, dtype=F32)[None, :7], normal(1, 2, k)], axis=1)
    outputs = []
    for n in (1, 9):
        func = linear_nbits(tile, n, k, columns, 4, block, "float32", False, table=table)
        outputs.append(run(func, rows[:, :n], q, scale, none, out=((1, n, columns), "float32")))
    assert np.array_equal(outputs[0], outputs[1][:, :1])
    assert np.array_equal(outputs[1][0, :7], numbers.T[:7])
    np.testing.assert_allclose(outputs[1][:, 7:], rows[:, 7:] @ numbers.T, atol=1e-4, rtol=0)
    wrong = np.array(CODE_TABLES[table], F32)[codes ^ 1] * np.repeat(absmax, block, 1)  # the negative control
    assert not np.array_equal(outputs[1][0, :7], wrong.T[:7])


@pytest.mark.parametrize(("tile", "zero_dtype"), [(MALI, "float32"), (SMALL, "float16")], ids=tile_name)
def test_zero_points_that_are_fractions(run: Run, tile: GpuTile, zero_dtype: str) -> None:
    """HQQ's: a weight is (q - zero) * scale in float32; three blocks a column, the last one short."""
    from passes.lower.pack import pack_quantised, to_panels
    from passes.packed_codes import unpack_codes
    from targets.opencl.kernels.embedding import embedding_nbits
    from targets.opencl.kernels.linear_nbits import linear_nbits

    bits, k, columns, block = 4, 80, 41, 32
    onnx, _ = quantised(bits, k, columns, block, zeros=False)
    fractions = (7 + 3 * normal(columns, 3, seed=4)).astype(zero_dtype)
    codes = unpack_codes(onnx["q"], bits, k).astype(F32)
    w = (codes - np.repeat(fractions.astype(F32), block, 1)[:, :k]) * np.repeat(onnx["scale"], block, 1)[:, :k]
    q, scale = pack_quantised(onnx["q"], bits, k, tile.panel), to_panels(onnx["scale"].T, tile.panel)
    zero, rows, outputs = to_panels(fractions.T, tile.panel), normal(1, 5, k), []
    for n in (1, 5):
        func = linear_nbits(tile, n, k, columns, bits, block, "float32", True, zero_dtype)
        outputs.append(run(func, rows[:, :n], q, scale, zero, out=((1, n, columns), "float32")))
        np.testing.assert_allclose(outputs[-1], rows[:, :n] @ w.T, atol=1e-3, rtol=1e-5)
    assert np.array_equal(outputs[0], outputs[1][:, :1])
    ids = np.array([[0, 7, 8, 15, 40]])
    func = embedding_nbits(tile, 5, columns, k, bits, block, "float32", True, zero_dtype)
    y = run(func, q, scale, zero, ids, out=((1, 5, k), "float32"))
    np.testing.assert_allclose(y[0], w[ids[0]], rtol=1e-6, atol=1e-7)
    y = run(func, q, scale, np.round(zero), ids, out=((1, 5, k), "float32"))  # the negative control: whole zero points
    assert np.abs(y[0] - w[ids[0]]).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embedding(run: Run, dtype: str) -> None:
    from passes.lower.pack import to_panels
    from targets.opencl.kernels.embedding import embedding

    w = normal(50, 33).astype(dtype)
    ids = np.array([[49, 0, 16]])
    packed = to_panels(w.T, 16)
    y = run(embedding(GpuTile(), 3, 50, 33, dtype), packed, ids, out=((1, 3, 33), "float32"))
    assert np.array_equal(y[0], w[ids[0]].astype(F32))


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tile", "window", "softcap", "dim", "slopes"),
    [(MALI, 0, 0.0, 32, ()), (SMALL, 5, 3.0, 6, ()), (MALI, 41, 2.0, 32, ()), (MALI, 0, 0.0, 8, (0.5, 0.03, 0.7, 0.2))],
    ids=tile_name,
)
def test_attention_cached(
    run: Run, tile: GpuTile, window: int, softcap: float, dim: int, slopes: tuple[float, ...]
) -> None:
    from targets.opencl.kernels.attention import attention_cached
    from targets.opencl.kernels.attention_parts import key_blocks

    heads, kv_heads, context, total = 4, 2, 84, 75
    q, k, v = normal(total, heads * dim), normal(total, kv_heads * dim, seed=1), normal(total, kv_heads * dim, seed=2)
    expected = attention_reference(
        *(q.reshape(total, heads, dim), k.reshape(total, kv_heads, dim), v.reshape(total, kv_heads, dim)),
        *(0.2, window, softcap, slopes),
    )

    def in_steps(parts: list[int], scale: float = 0.2) -> Array:
        # stale memory is NaN: nothing beyond the written rows may leak
        keys = run.tensor(np.full((1, kv_heads, context // 4, dim, 4), np.nan, F32))
        values = run.tensor(np.full((1, kv_heads, context, dim), np.nan, F32))
        rows, pos = [], 0
        for n in parts:
            func = attention_cached(tile, n, heads, kv_heads, dim, context, scale, window, softcap, slopes=slopes)
            part = [x[None, pos : pos + n] for x in (q, k, v)]
            scratch = [((n, heads, context), "float32"), ((n, heads, key_blocks(context), 2), "float32")]
            out = ((1, n, heads * dim), "float32")
            rows.append(run(func, *part, keys, values, pos, out=out, scratch=scratch)[0])
            pos += n
        return np.concatenate(rows)

    whole = in_steps([75])
    np.testing.assert_allclose(whole, expected, atol=2e-6, rtol=0)
    for parts in ([1] * 75, [8, 1, 8, 8, 8, 8, 32, 1, 1]):
        assert np.array_equal(in_steps(parts), whole), parts
    assert np.abs(in_steps([75], scale=0.21) - expected).max() > 1e-4
    if slopes:
        others = (0.21, window, softcap, (*slopes[:3], 0.21))
        assert (
            np.abs(
                whole
                - attention_reference(
                    q.reshape(total, heads, dim), *(x.reshape(total, kv_heads, dim) for x in (k, v)), *others
                )
            ).max()
            > 1e-4
        )


def test_keys_and_values_in_float16(run: Run) -> None:
    """They are stored as the bits of halves, rounded as the CPU rounds, and a row attends to its own stored ones."""
    from targets.opencl.kernels.attention import attention_cached
    from targets.opencl.kernels.attention_parts import key_blocks

    heads, kv_heads, dim, context, total = 4, 2, 6, 36, 34
    q, k, v = normal(total, heads * dim), normal(total, kv_heads * dim, seed=1), normal(total, kv_heads * dim, seed=2)

    def reference(dtype: str) -> Array:
        stored = (x.astype(dtype).astype(F32).reshape(total, kv_heads, dim) for x in (k, v))
        return attention_reference(q.reshape(total, heads, dim), *stored, 0.2, 0, 0.0)

    def in_steps(parts: list[int]) -> tuple[Array, Array]:
        keys = run.tensor(np.full((1, kv_heads, context // 4, dim, 4), 0x7E00, np.uint16))  # NaN
        values = run.tensor(np.full((1, kv_heads, context, dim), 0x7E00, np.uint16))
        rows, pos = [], 0
        for n in parts:
            func = attention_cached(SMALL, n, heads, kv_heads, dim, context, 0.2, 0, 0.0, "float16")
            part = [x[None, pos : pos + n] for x in (q, k, v)]
            scratch = [((n, heads, context), "float32"), ((n, heads, key_blocks(context), 2), "float32")]
            out = ((1, n, heads * dim), "float32")
            rows.append(run(func, *part, keys, values, pos, out=out, scratch=scratch)[0])
            pos += n
        return np.concatenate(rows), values.numpy()

    whole, values = in_steps([34])
    stored = v.astype(np.float16).reshape(total, kv_heads, dim).transpose(1, 0, 2)
    assert np.array_equal(values[0, :, :total].view(np.float16), stored)
    np.testing.assert_allclose(whole, reference("float16"), atol=2e-6, rtol=0)
    assert np.array_equal(in_steps([1, 32, 1])[0], whole)
    assert np.abs(whole - reference("float32")).max() > 2e-5
    for key in (7e4, -7e4):  # no float16: the rows that see it are spoiled, whatever its score
        k[4, 5] = key
        for y in (in_steps([34])[0], in_steps([1, 32, 1])[0]):
            assert np.isfinite(y[:4]).all()
            assert not np.isfinite(y[4:, [5, dim + 5]]).any()


def test_keys_and_values_in_int8(run: Run) -> None:
    """Codes and scales are numpy's, and so the CPU's; a row attends to its own stored ones."""
    from hetero_sd.stored_kv import as_stored, codes_of
    from targets.opencl.kernels.attention import attention_cached
    from targets.opencl.kernels.attention_parts import key_blocks

    heads, kv_heads, dim, context, total = 4, 2, 6, 36, 34
    q, k, v = normal(total, heads * dim), normal(total, kv_heads * dim, seed=1), normal(total, kv_heads * dim, seed=2)
    k[7, :dim], v[9, dim:] = 0, 1e-38  # nothing, and less than has a code
    by_head = [x.reshape(total, kv_heads, dim) for x in (k, v)]

    def in_steps(parts: list[int]) -> tuple[Array, Array, Array]:
        keys = run.tensor(np.full((1, kv_heads, context // 4, dim + 8, 4), -1, np.int8))  # a scale of NaN
        values = run.tensor(np.full((1, kv_heads, context, dim), -1, np.int8))
        rows, pos = [], 0
        for n in parts:
            func = attention_cached(SMALL, n, heads, kv_heads, dim, context, 0.2, 0, 0.0, "int8")
            part = [x[None, pos : pos + n] for x in (q, k, v)]
            scratch = [((n, heads, context), "float32"), ((n, heads, key_blocks(context), 2), "float32")]
            out = ((1, n, heads * dim), "float32")
            rows.append(run(func, *part, keys, values, pos, out=out, scratch=scratch)[0])
            pos += n
        return np.concatenate(rows), keys.numpy()[0], values.numpy()[0]

    whole, keys, values = in_steps([34])
    codes = keys[:, :, :dim].transpose(0, 1, 3, 2).reshape(kv_heads, context, dim)[:, :total]
    scales = np.ascontiguousarray(keys[:, :, dim:]).reshape(kv_heads, -1, 2, 16).view(F32)
    for x, stored, which in zip(by_head, (codes, values[:, :total]), (0, 1), strict=True):
        expected, scale = codes_of(x.transpose(1, 0, 2))
        assert np.array_equal(stored, expected)
        assert np.array_equal(scales[:, :, which].reshape(kv_heads, context)[:, :total], scale[..., 0])
    rounded = [as_stored(x, "int8") for x in by_head]
    queries = q.reshape(total, heads, dim)
    np.testing.assert_allclose(whole, attention_reference(queries, *rounded, 0.2, 0, 0.0), atol=3e-6, rtol=0)
    assert np.abs(whole - attention_reference(queries, *by_head, 0.2, 0, 0.0)).max() > 1e-3
    assert np.array_equal(in_steps([1, 32, 1])[0], whole)
    for spoiled in (k, v):
        before, spoiled[4, 5] = spoiled[4, 5], np.inf
        y = in_steps([1, 32, 1])[0].reshape(total, heads, dim)
        assert not np.isfinite(y[4:, :2]).any()
        assert np.isfinite(y[:4]).all()
        assert np.isfinite(y[:, 2:]).all()
        spoiled[4, 5] = before


def test_attention_in_passes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from targets.opencl.kernels import attention, attention_parts

    n, heads, kv_heads, dim, context, pos = 7, 4, 2, 8, 64, 40
    q, k, v = normal(1, n, heads * dim), normal(1, n, kv_heads * dim, seed=1), normal(1, n, kv_heads * dim, seed=2)

    def outputs(tile: GpuTile) -> Array:
        keys, values = normal(1, kv_heads, context // 4, dim, 4, seed=3), normal(1, kv_heads, context, dim, seed=4)
        rows = attention_parts.scratch_rows(n, heads, context)
        scratch = [((rows, heads, context), "float32"), ((rows, heads, context // 32, 2), "float32")]
        func = attention.attention_cached(tile, n, heads, kv_heads, dim, context, 0.2, 0, 0.0)
        return run(func, q, k, v, keys, values, pos, out=((1, n, heads * dim), "float32"), scratch=scratch)

    whole = outputs(SMALL)
    monkeypatch.setattr(attention_parts, "SCRATCH_BYTES", 3 * heads * context * 4)
    assert attention_parts.scratch_rows(n, heads, context) == 3  # 3 + 3 + 1
    other = replace(SMALL, registers=57)  # kernels are cached by their tile
    assert np.array_equal(outputs(other), whole)
    assert np.abs(whole).max() > 0.1


def test_scratch_of_attention_does_not_grow_with_rows() -> None:
    from targets.opencl.kernels.attention_parts import SCRATCH_BYTES, scratch_rows

    # 32 heads over 8192 tokens: 1 MiB a row, so 16 rows take two passes of 8; at 131072 tokens every row is a pass
    assert [scratch_rows(n, 32, 8192) for n in (1, 5, 8, 16, 64)] == [1, 5, 8, 8, 8]
    assert scratch_rows(16, 32, 131072) == 1
    for n in range(1, 65):
        for heads, context in ((4, 128), (32, 8192), (14, 32768)):
            rows = scratch_rows(n, heads, context)
            assert 1 <= rows <= n
            assert rows == 1 or rows * heads * context * 4 <= SCRATCH_BYTES


@pytest.mark.parametrize(("tile", "width"), [(MALI, 128), (SMALL, 66)], ids=tile_name)
def test_norms(run: Run, tile: GpuTile, width: int) -> None:
    from targets.opencl.kernels.norm import add_rms_norm, partial_sums, rms_norm

    x, r, w = normal(1, 3, width), normal(1, 3, width, seed=1), normal(width, seed=2)

    def norm(x: Array, w: Array) -> Array:
        y: Array = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * w
        return y

    def rms(n: int, groups: int, eps: float, w: Array) -> Array:
        scratch = [((n * groups, partial_sums(width // groups)), "float32")]
        func = rms_norm(tile, n, width, groups, eps)
        return run(func, x[:, :n], w, out=((1, n, width), "float32"), scratch=scratch)

    y = rms(3, 1, 1e-5, w)
    np.testing.assert_allclose(y, norm(x, w), atol=2e-6)
    assert np.array_equal(rms(1, 1, 1e-5, w), y[:, :1])
    part = width // 2
    y = rms(3, 2, 1e-5, w[:part])
    np.testing.assert_allclose(y, norm(x.reshape(1, 3, 2, part), w[:part]).reshape(x.shape), atol=2e-6)
    total = run.tensor(np.zeros_like(x))
    scratch = [((3, partial_sums(width)), "float32")]
    y = run(add_rms_norm(tile, 3, width, 1e-5), x, r, w, total, out=(x.shape, "float32"), scratch=scratch)
    assert np.array_equal(total.numpy(), x + r)
    np.testing.assert_allclose(y, norm(x + r, w), atol=2e-6)
    assert np.abs(rms(3, 1, 1e-2, w) - norm(x, w)).max() > 1e-4


@pytest.mark.parametrize(("tile", "width"), [(MALI, 64), (SMALL, 33)], ids=tile_name)
def test_elementwise(run: Run, tile: GpuTile, width: int) -> None:
    from targets.opencl.kernels.elementwise import add, add_bias, silu_mul

    a, b, bias = 5 * normal(1, 3, width), normal(1, 3, width, seed=1), normal(width, seed=2)
    out = (a.shape, "float32")
    assert np.array_equal(run(add(tile, 3, width), a, b, out=out), a + b)
    assert np.array_equal(run(add_bias(tile, 3, width), a, bias, out=out), a + bias)
    expected = a / (1 + np.exp(-a.astype(np.float64))) * b
    np.testing.assert_allclose(run(silu_mul(tile, 3, width), a, b, out=out), expected, atol=2e-6)
    assert np.isfinite(run(silu_mul(tile, 3, width), np.full_like(a, -200.0), b, out=out)).all()
    assert np.abs(run(silu_mul(tile, 3, width), a * F32(1.001), b, out=out) - expected).max() > 1e-4


def test_activations(run: Run) -> None:
    from scipy.special import erf

    from targets.opencl.kernels.elementwise import clip, gelu, gelu_mul, relu, scale, squared_relu, tanh, xielu

    x, up = 3 * normal(1, 2, 38), normal(1, 2, 38, seed=1)
    out, wide = (x.shape, "float32"), x.astype(np.float64)
    exact = wide * (1 + erf(wide / 2**0.5)) / 2
    approximate = wide * (1 + np.tanh((2 / np.pi) ** 0.5 * (wide + 0.044715 * wide**3))) / 2
    np.testing.assert_allclose(run(gelu(MALI, 2, 38, tanh=False), x, out=out), exact, atol=2e-6)
    np.testing.assert_allclose(run(gelu(MALI, 2, 38, tanh=True), x, out=out), approximate, atol=2e-6)
    rounded = wide * (1 + np.tanh(0.796875 * (wide + 0.0446 * wide**3))) / 2  # constants of an export
    np.testing.assert_allclose(run(gelu(MALI, 2, 38, True, 0.796875, 0.0446), x, out=out), rounded, atol=2e-6)
    y = run(gelu_mul(MALI, 2, 38, True, 0.796875, 0.0446), x, up, out=out)
    np.testing.assert_allclose(y, rounded * up, atol=4e-6)
    assert np.abs(y - approximate * up).max() > 1e-4
    np.testing.assert_allclose(run(gelu_mul(MALI, 2, 38, tanh=False), x, up, out=out), exact * up, atol=4e-6)
    y = run(gelu_mul(MALI, 2, 38, tanh=True), x, up, out=out)
    np.testing.assert_allclose(y, approximate * up, atol=4e-6)
    assert np.abs(y - exact * up).max() > 1e-4  # the two GELUs differ, and the check sees it
    x[0, 1, 5] = np.nan
    assert np.array_equal(run(relu(MALI, 2, 38), x, out=out), np.maximum(x, 0), equal_nan=True)
    y = run(squared_relu(MALI, 2, 38), x, out=out)
    assert np.array_equal(y, np.maximum(x, 0) ** 2, equal_nan=True)
    assert not np.array_equal(y, x**2, equal_nan=True)
    x[0, 1, 5] = wide[0, 1, 5]
    np.testing.assert_allclose(run(tanh(MALI, 2, 38), x, out=out), np.tanh(wide), atol=1e-6)
    assert np.array_equal(run(scale(MALI, 2, 38, 0.3), x, out=out), x * F32(0.3))
    assert np.array_equal(run(clip(MALI, 2, 38, -1.5, 2.5), x, out=out), np.clip(x, F32(-1.5), F32(2.5)))
    under = np.minimum(wide, 0)
    curved = 0.8 * np.maximum(wide, 0) ** 2 + 1.3 * (np.expm1(under) - under) + 0.5 * wide
    np.testing.assert_allclose(run(xielu(MALI, 2, 38, 0.8, 1.3, 0.5), x, out=out), curved, atol=4e-6, rtol=1e-6)
    assert np.abs(run(xielu(MALI, 2, 38, 0.8, 1.31, 0.5), x, out=out) - curved).max() > 1e-3


@pytest.mark.parametrize("width", [64, 33])
def test_layer_norm(run: Run, width: int) -> None:
    from targets.opencl.kernels.norm import layer_norm

    x, w, b = normal(1, 3, width) + 2, normal(width, seed=1), normal(width, seed=2)
    centred = x - x.mean(-1, keepdims=True, dtype=np.float64)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w + b
    y = run(layer_norm(MALI, 3, width, 1e-5), x, w, b, out=(x.shape, "float32"))
    np.testing.assert_allclose(y, expected, atol=4e-6)
    one = run(layer_norm(MALI, 1, width, 1e-5), x[:, :1], w, b, out=((1, 1, width), "float32"))
    assert np.array_equal(one, y[:, :1])
    y = run(layer_norm(MALI, 3, width, 1e-2), x, w, b, out=(x.shape, "float32"))
    assert np.abs(y - expected).max() > 1e-4


@pytest.mark.parametrize(("groups", "width"), [(4, 64), (3, 39)])
@pytest.mark.parametrize("own", [False, True])
def test_layer_norm_of_parts_of_a_row(run: Run, groups: int, width: int, own: bool) -> None:
    from targets.opencl.kernels.norm import layer_norm

    rows = groups if own else 1
    x, w, b = normal(1, 3, width) + 2, normal(rows, width // groups, seed=1), normal(rows, width // groups, seed=2)
    parts = x.astype(np.float64).reshape(1, 3, groups, -1)
    centred = parts - parts.mean(-1, keepdims=True)
    expected = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w + b).reshape(x.shape)
    flat, out = (w.reshape(-1), b.reshape(-1)), (x.shape, "float32")
    np.testing.assert_allclose(
        run(layer_norm(MALI, 3, width, 1e-5, groups, own), x, *flat, out=out), expected, atol=4e-6
    )
    whole = [np.resize(v, width) for v in flat]
    assert np.abs(run(layer_norm(MALI, 3, width, 1e-5), x, *whole, out=out) - expected).max() > 0.1


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("tile", "rotary_dim"), [(MALI, 32), (SMALL, 6)], ids=tile_name)
def test_rope(run: Run, tile: GpuTile, rotary_dim: int, interleaved: bool) -> None:
    from targets.opencl.kernels.rope import rope

    half, x = np.arange(rotary_dim // 2), normal(1, 3, 4 * 32)
    cos, sin = normal(64, len(half), seed=1), normal(64, len(half), seed=2)
    first, second = (2 * half, 2 * half + 1) if interleaved else (half, half + rotary_dim // 2)
    expected = x.reshape(3, 4, 32).copy()
    a, b, c, s = expected[..., first], expected[..., second], cos[5:8][:, None], sin[5:8][:, None]
    expected[..., first], expected[..., second] = a * c - b * s, b * c + a * s
    expected = expected.reshape(x.shape)

    def kernel(pos: int, pairs: bool) -> Array:
        return run(rope(tile, 3, 4, 32, rotary_dim, 64, pairs), x, cos, sin, pos, out=(x.shape, "float32"))

    np.testing.assert_allclose(kernel(5, interleaved), expected, atol=2e-6)
    for control in (kernel(6, interleaved), kernel(5, not interleaved)):
        assert np.abs(control - expected).max() > 0.1


@pytest.mark.parametrize(("tile", "vocab"), [(MALI, 512), (SMALL, 515)], ids=tile_name)
def test_argmax_takes_the_lowest_of_equals(run: Run, tile: GpuTile, vocab: int) -> None:
    from targets.opencl.kernels.argmax import argmax, argmax_parts

    logits = normal(1, 4, vocab)
    logits[0, 1, [vocab - 1, vocab // 2]] = 9
    logits[0, 2] = -7
    logits[0, 3, vocab - 1] = 8
    scratch = [((4, argmax_parts(vocab)), "float32"), ((4, argmax_parts(vocab)), "int32")]
    ids = run(argmax(tile, 4, vocab), logits, out=((1, 4), "int64"), scratch=scratch)
    assert ids[0].tolist() == logits[0].argmax(-1).tolist()


@pytest.mark.parametrize(("tile", "vocab"), [(MALI, 512), (SMALL, 515)], ids=tile_name)
def test_argmax_of_a_row_that_is_not_finite_is_minus_one(run: Run, tile: GpuTile, vocab: int) -> None:
    from targets.opencl.kernels.argmax import argmax, argmax_parts

    scratch = [((3, argmax_parts(vocab)), "float32"), ((3, argmax_parts(vocab)), "int32")]

    def ids(logits: Array) -> list[int]:
        found: list[int] = run(argmax(tile, 3, vocab), logits, out=((1, 3), "int64"), scratch=scratch)[0].tolist()
        return found

    for at in (0, 255, 256, vocab - 1):
        logits = normal(1, 3, vocab)
        logits[0, 0, at], logits[0, 2, at] = np.finfo(F32).max, np.finfo(F32).min
        finite = ids(logits)
        assert finite == logits[0].argmax(-1).tolist()
        for bad in (np.nan, -np.nan, np.inf, -np.inf):
            logits[0, 1, at] = bad
            assert ids(logits) == [finite[0], -1, finite[2]]


def test_take(run: Run) -> None:
    from targets.opencl.kernels.take import learned_positions, take_columns, take_row

    x = normal(1, 4, 75)
    assert np.array_equal(run(take_row(GpuTile(), 4, 75), x, 2, out=((1, 1, 75), "float32"))[0, 0], x[0, 2])
    y = run(take_columns(GpuTile(), 4, 75, 8, 16), x, out=((1, 4, 16), "float32"))
    assert np.array_equal(y, x[:, :, 8:24])
    ids = np.zeros((1, 3), np.int64)
    for table in (x[0].repeat(3, 0), x[0].repeat(3, 0).astype(np.float16)):
        func = learned_positions(GpuTile(), 3, 12, 75, str(table.dtype))
        y = run(func, table, ids, 7, out=((1, 3, 75), "float32"))
        assert np.array_equal(y[0], table[7:10].astype(F32))


def test_weights_are_loaded_128_bits_at_a_time(run: Run) -> None:
    from targets.opencl.kernels.linear import linear

    whole = run.source(linear(GpuTile(), 4, 64, 64, "float32"))
    halves = run.source(linear(GpuTile(), 4, 64, 64, "float16"))
    assert "vload4(0, w_ptr" in whole
    assert "vload_half8(" in halves
    assert "cl_khr_fp16" not in halves
    assert "__local" not in whole + halves
    assert whole.count("fma(") > 0


def test_groups_stay_within_the_board() -> None:
    for board in ("imx95", "rk3588", "rk3566"):
        gpu = load_board(board).gpu
        assert gpu is not None
        tile = gpu_tile(gpu)
        assert 1 <= tile.group <= gpu.max_work_group_size
        for n in range(1, 33):
            for columns in (4, 8):
                assert tile.rows(n, columns) * tile.columns(n, columns) <= tile.accumulators
            assert tile.rows(n, 8) == n or n > 8  # up to 8 rows share one read of the weights


@pytest.mark.deep
def test_oclgrind_finds_nothing_in_any_kernel(runtime_library: Path, factories: dict[str, Any], tmp_path: Path) -> None:
    """The tests above again, at their odd sizes: no access out of bounds, no uninitialised value used, no race.

    A kernel that none of them makes fails this test, so a new one needs a test at an odd size.

    Without optimisation, because Oclgrind does not know LLVM's `freeze`, which optimised divisions contain. That it
    finds a planted fault is shown in test_opencl_processes.py.
    """
    need_program("oclgrind")
    log, used = tmp_path / "log", tmp_path / "used"
    checks = ("--data-races", "--uninitialized", "--build-options", "-cl-opt-disable", "--log", str(log))
    more = ("test_linear_int.py", "test_rows_of_sequences.py", "test_streams.py")
    files = (__file__, *(str(Path(__file__).with_name(name)) for name in more))
    pytest_ = (sys.executable, "-m", "pytest", "-q", "--import-mode=importlib", "-p", "no:cacheprovider", *files)
    which = "streams or rows_of_sequences or SMALL or take or activations or layer_norm or test_embedding"
    environment = {**os.environ, "HSD_OPENCL_RUNTIME": str(runtime_library), "HSD_TEST_KERNELS_USED": str(used)}
    done = subprocess.run(
        ["oclgrind", *checks, *pytest_, "-k", which], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    assert log.read_text() == ""
    made = set(used.read_text().split())
    assert {"linear.linear", "attention.attention_cached", "norm.layer_norm"} < set(factories)
    assert made == set(factories), f"not under Oclgrind: {sorted(set(factories) - made)}"
