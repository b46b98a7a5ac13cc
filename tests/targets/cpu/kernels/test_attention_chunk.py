"""Attention over several chunks of keys: the same bits in one task and in many, however many rows there are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm

from targets.boards import load_board
from targets.cpu.kernels.attention import attention_cached
from targets.cpu.kernels.attention_rows import attention_rows
from targets.cpu.target import tvm_target
from targets.cpu.tile import CHUNK, CpuTile, chunk_tasks

Array = npt.NDArray[Any]
AVX2 = CpuTile(lanes=8, panel=16, accumulators=12, dot="pmadd")
NEON = CpuTile(lanes=4, panel=16, accumulators=24, dot="sdot")
HEADS, KV_HEADS, DIM, CONTEXT, SCALE = 4, 2, 16, 2 * CHUNK + 64, 0.3
ROWS = 24  # so many go over the keys together; of fewer each chunk is a task
F32 = np.float32


@functools.cache
def compiled(func: Any) -> Callable[..., None]:
    target = tvm_target(load_board("host", measure=False).clusters[0].core)
    built = tvm.compile(func.with_attr("global_symbol", "main"), target=target)
    call: Callable[..., None] = built.mod["main"]
    return call


@dataclass(frozen=True)
class Case:
    """What is attended with; caches hold CONTEXT random keys and values, of which those from `pos` on are written."""

    tile: CpuTile
    window: int = 0
    softcap: float = 0.0

    def caches(self) -> tuple[Array, Array]:
        rng = np.random.default_rng(7)
        shape = KV_HEADS, CONTEXT, DIM
        return rng.standard_normal(shape).astype(F32), rng.standard_normal(shape).astype(F32)

    def stored(self) -> tuple[Any, Any]:
        keys, values = self.caches()
        tiles = keys.reshape(KV_HEADS, -1, self.tile.lanes, DIM).transpose(0, 1, 3, 2)
        return tvm.runtime.tensor(np.ascontiguousarray(tiles)[None]), tvm.runtime.tensor(values[None])

    def rows(self, pos: int, parts: list[int]) -> Array:
        """The rows from `pos` on whose keys and values are those that the caches have there anyway."""
        found, (keys, values) = [], self.stored()
        for n in parts:
            func = attention_cached(
                *(self.tile, n, HEADS, KV_HEADS, DIM, CONTEXT, SCALE, self.window, self.softcap),
            )
            y = tvm.runtime.tensor(np.zeros((1, n, HEADS * DIM), F32))
            compiled(func)(*map(tvm.runtime.tensor, self.qkv(pos, n)), keys, values, pos, y)
            found.append(y.numpy()[0])
            pos += n
        return np.concatenate(found)

    def qkv(self, pos: int, n: int) -> list[Array]:
        keys, values = self.caches()
        q = np.stack([np.random.default_rng(p).standard_normal(HEADS * DIM).astype(F32) for p in range(pos, pos + n)])
        new = (x[:, pos : pos + n].transpose(1, 0, 2).reshape(n, KV_HEADS * DIM) for x in (keys, values))
        return [np.ascontiguousarray(x)[None] for x in (q, *new)]

    def expected(self, pos: int, n: int, scale: float = SCALE) -> Array:
        keys, values = (np.repeat(x.astype(np.float64), HEADS // KV_HEADS, 0) for x in self.caches())
        answers = []
        for t, q in enumerate(self.qkv(pos, n)[0][0].reshape(n, HEADS, DIM).astype(np.float64)):
            seen = slice(max(0, pos + t + 1 - self.window) if self.window else 0, pos + t + 1)
            s = np.einsum("hd,hjd->hj", q, keys[:, seen]) * scale
            s = self.softcap * np.tanh(s / self.softcap) if self.softcap else s
            p = np.exp(s - s.max(-1, keepdims=True))
            answers.append(np.einsum("hj,hjd->hd", p / p.sum(-1, keepdims=True), values[:, seen]).reshape(-1))
        return np.stack(answers)


CASES = {
    "plain": Case(AVX2),
    "window, softcap": Case(AVX2, CHUNK + 5, 2.0),
    "short window": Case(NEON, 30),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", *(pytest.param(n, marks=pytest.mark.deep) for n in [*CASES][1:])])
def test_rows_have_the_same_bits_in_any_number_of_tasks(name: str) -> None:
    """Before, over and after the borders of chunks."""
    case = CASES[name]
    assert not chunk_tasks(ROWS, CONTEXT)
    assert chunk_tasks(4, CONTEXT)
    for pos in (0, 20, CHUNK - ROWS, CHUNK - 7, CHUNK - 1, CHUNK, CHUNK + 40, 2 * CHUNK - 9, 2 * CHUNK):
        whole = case.rows(pos, [ROWS])
        np.testing.assert_allclose(whole, case.expected(pos, ROWS), atol=3e-6, rtol=0)
        for parts in ([1] * ROWS, [4] * (ROWS // 4)):
            assert np.array_equal(case.rows(pos, parts), whole), (pos, parts)
        if pos:
            assert np.abs(whole - case.expected(pos, ROWS, SCALE + 0.02)).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("n", [3, pytest.param(8, marks=pytest.mark.deep)])
def test_rows_of_several_sequences(n: int) -> None:
    """Each is at a place of its own, some in the first chunk, some in the last: the bits that it has alone."""
    case, slots = CASES["plain"], 2
    keys, values = (np.concatenate([x.numpy()] * slots) for x in case.stored())
    places = [(t % slots, p) for t, p in enumerate((5, 2 * CHUNK + 3, CHUNK - 1, CHUNK, 700, 30, 390, 0)[:n])]
    sizes = KV_HEADS, DIM, CONTEXT, SCALE, case.window, case.softcap
    rows = [np.concatenate(x, 1) for x in zip(*(case.qkv(p, 1) for _, p in places), strict=True)]
    y = tvm.runtime.tensor(np.zeros((1, n, HEADS * DIM), F32))
    where = [np.array(x, np.int64) for x in zip(*places, strict=True)]
    func = attention_rows(case.tile, n, slots, HEADS, *sizes)
    compiled(func)(*map(tvm.runtime.tensor, (*rows, keys, values, *where)), y)
    for t, (_, pos) in enumerate(places):
        assert np.array_equal(y.numpy()[0, t], case.rows(pos, [1])[0]), pos
        assert not np.array_equal(y.numpy()[0, t], case.rows(pos + 1, [1])[0])
