"""Rows of several sequences on an OpenCL device: each has the bits that its sequence has alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from targets.kv_format import KV_FORMATS
from targets.opencl.tile import GpuTile

Array = npt.NDArray[Any]
F32 = np.float32
SMALL = GpuTile(group=5, accumulators=16)
SLOTS, CONTEXT = 3, 68
Run = Any  # the fixture's Kernels, see conftest.py


def normal(*shape: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


@pytest.mark.parametrize(
    ("cache", "window", "softcap", "slopes"),
    [("float32", 0, 0.0, ()), ("float16", 37, 20.0, (0.5, 0.25, 0.125, 0.0625)), ("int8", 0, 0.0, ())],
    ids=["float32", "float16 window softcap ALiBi", "int8"],
)
def test_attention(run: Run, cache: str, window: int, softcap: float, slopes: tuple[float, ...]) -> None:
    """Prompts of three texts in their slots, then rows of all of them, two of one text among them, and one twice."""
    from targets.opencl.kernels.attention import attention_cached, attention_in_slot, attention_rows
    from targets.opencl.kernels.attention_parts import key_blocks

    heads, kv_heads, dim, lengths = 4, 2, 6, (67, 5, 33)
    stored, stale = {"float32": (F32, np.nan), "float16": (np.uint16, 0x7E00), "int8": (np.int8, 127)}[cache]
    key_rows = dim + KV_FORMATS[cache].scale_rows
    texts = [
        [normal(1, n, width * dim, seed=10 * slot + i) for i, width in enumerate((heads, kv_heads, kv_heads))]
        for slot, n in enumerate(lengths)
    ]
    sizes = (heads, kv_heads, dim, CONTEXT, 0.2, window, softcap, cache, slopes)

    def outputs(n: int) -> dict[str, Any]:
        scratch = [((n, heads, CONTEXT), "float32"), ((n, heads, key_blocks(CONTEXT), 2), "float32")]
        return {"out": ((1, n, heads * dim), "float32"), "scratch": scratch}

    def caches(slots: int) -> tuple[Any, Any]:
        shapes = (slots, kv_heads, CONTEXT // 4, key_rows, 4), (slots, kv_heads, CONTEXT, dim)
        keys, values = (run.tensor(np.full(shape, stale, stored)) for shape in shapes)
        return keys, values

    alone = [
        run(attention_cached(SMALL, n, *sizes), *text, *caches(1), 0, **outputs(n))
        for n, text in zip(lengths, texts, strict=True)
    ]
    keys, values = caches(SLOTS)
    for slot, (n, text) in enumerate(zip(lengths, texts, strict=True)):
        begin = [x[:, : n - 3] for x in text]
        func = attention_in_slot(SMALL, n - 3, SLOTS, *sizes)
        made = run(func, *begin, keys, values, slot, 0, **outputs(n - 3))
        assert np.array_equal(made, alone[slot][:, : n - 3])
    func = attention_rows(SMALL, 5, SLOTS, *sizes)
    for places in ([(0, 64), (1, 2), (2, 30), (1, 3), (1, 3)], [(2, 31), (2, 32), (0, 65), (1, 4), (0, 66)]):
        rows = [np.concatenate([texts[s][i][:, p : p + 1] for s, p in places], 1) for i in range(3)]
        slot, pos = (np.array(numbers, np.int64) for numbers in zip(*places, strict=True))
        made = run(func, *rows, keys, values, slot, pos, **outputs(5))
        expected = np.concatenate([alone[s][:, p : p + 1] for s, p in places], 1)
        assert np.array_equal(made, expected), places
        assert not np.array_equal(made[:, ::-1], expected)  # the negative control


@pytest.mark.parametrize(("rotary_dim", "interleaved"), [(32, False), (6, True)])
def test_rope(run: Run, rotary_dim: int, interleaved: bool) -> None:
    from targets.opencl.kernels.rope import rope, rope_rows

    x, pos = normal(1, 4, 2 * 32, seed=1), np.array([40, 0, 63, 41])
    cos, sin = (normal(64, rotary_dim // 2, seed=seed) for seed in (2, 3))
    sizes = (2, 32, rotary_dim, 64, interleaved)
    made = run(rope_rows(SMALL, 4, *sizes), x, cos, sin, pos, out=(x.shape, "float32"))
    for t, position in enumerate(pos.tolist()):
        row = x[:, t : t + 1]
        alone = run(rope(SMALL, 1, *sizes), row, cos, sin, position, out=(row.shape, "float32"))
        assert np.array_equal(made[:, t : t + 1], alone)
    other = run(rope_rows(SMALL, 4, *sizes), x, cos, sin, pos[::-1].copy(), out=(x.shape, "float32"))
    assert not np.array_equal(other, made)  # the negative control


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_learned_positions(run: Run, dtype: str) -> None:
    from targets.opencl.kernels.take import learned_positions_rows

    table, pos = normal(20, 7, seed=1).astype(dtype), np.array([19, 0, 0, 4])
    func = learned_positions_rows(SMALL, 4, 20, 7, dtype)
    made = run(func, table, np.zeros((1, 4), np.int64), pos, out=((1, 4, 7), "float32"))
    assert np.array_equal(made[0], table[pos].astype(F32))
    assert not np.array_equal(made[0], table[pos - 1].astype(F32))  # the negative control
