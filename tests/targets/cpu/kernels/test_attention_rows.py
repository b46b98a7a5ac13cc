"""Attention over rows of several sequences: each has the bits that its sequence alone gives it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm
from hypothesis import example, given, settings
from hypothesis import strategies as st

from targets.boards import load_board
from targets.cpu.kernels.attention import attention_cached
from targets.cpu.kernels.attention_rows import attention_rows
from targets.cpu.kernels.rope import rope, rope_rows
from targets.cpu.kernels.take import learned_positions, learned_positions_rows
from targets.cpu.target import tvm_target
from targets.cpu.tile import CpuTile
from targets.kv_format import KV_FORMATS

Array = npt.NDArray[Any]
AVX2 = CpuTile(lanes=8, panel=16, accumulators=12, dot="pmadd")
NEON = CpuTile(lanes=4, panel=16, accumulators=24, dot="sdot")
SLOTS, HEADS, KV_HEADS, DIM, CONTEXT, N = 3, 4, 2, 16, 32, 4
F32 = np.float32


@functools.cache
def compiled(func: Any) -> Callable[..., None]:
    target = tvm_target(load_board("host", measure=False).clusters[0].core)
    built = tvm.compile(func.with_attr("global_symbol", "main"), target=target)
    call: Callable[..., None] = built.mod["main"]
    return call


def tensor(array: Array) -> Any:
    return tvm.runtime.tensor(np.ascontiguousarray(array))


@dataclass(frozen=True)
class Case:
    """What is attended with; `alone` runs one row at a time over caches of one sequence."""

    tile: CpuTile
    window: int
    softcap: float
    cache: str

    @property
    def _sizes(self) -> tuple[Any, ...]:
        return HEADS, KV_HEADS, DIM, CONTEXT, 0.2, self.window, self.softcap, self.cache

    def caches(self, slots: int) -> tuple[Array, Array]:
        """Stale memory is NaN: nothing beyond the written rows may leak."""
        kv, lanes = KV_FORMATS[self.cache], self.tile.lanes
        stale = np.dtype(self.cache).type(-1 if kv.scales else np.nan)  # four bytes of -1 are a scale of NaN
        keys = np.full((slots, KV_HEADS, CONTEXT // lanes, DIM + kv.scale_rows, lanes), stale)
        return keys, np.full((slots, KV_HEADS, CONTEXT, DIM), stale)

    def alone(self, qkv: Sequence[Array], keys: Any, values: Any, pos: int) -> Array:
        y = tensor(np.zeros((1, 1, HEADS * DIM), F32))
        parts = [tensor(x[None, None]) for x in qkv]
        compiled(attention_cached(self.tile, 1, *self._sizes))(*parts, keys, values, pos, y)
        found: Array = y.numpy()[0, 0]
        return found

    def together(self, qkv: Sequence[Array], keys: Any, values: Any, slot: Sequence[int], pos: Sequence[int]) -> Array:
        y = tensor(np.zeros((1, N, HEADS * DIM), F32))
        where = [tensor(np.array(x, np.int64)) for x in (slot, pos)]
        parts = [tensor(x[None]) for x in qkv]
        compiled(attention_rows(self.tile, N, SLOTS, *self._sizes))(*parts, keys, values, *where, y)
        found: Array = y.numpy()[0]
        return found


def equal(a: Array, b: Array) -> bool:
    """Bit for bit, NaN among them."""
    return a.tobytes() == b.tobytes()


CASES = {
    "plain": Case(AVX2, 0, 0.0, "float32"),
    "window, softcap, float16": Case(AVX2, 9, 2.0, "float16"),
    "codes": Case(AVX2, 0, 0.0, "int8"),
    "neon, window": Case(NEON, 5, 0.0, "float32"),
}


@pytest.mark.parametrize("name", [*[*CASES][:-1], pytest.param([*CASES][-1], marks=pytest.mark.deep)])
def test_any_mix_of_rows_has_the_bits_of_each_alone(name: str) -> None:
    case = CASES[name]

    @settings(max_examples=25, deadline=None)
    @example(before=[0, CONTEXT - N, 5], rows=[1, 1, 1, 1], seed=0)
    @example(before=[9, 0, 30], rows=[0, 1, 2, 0], seed=1)
    @given(
        before=st.lists(st.integers(0, CONTEXT - N), min_size=SLOTS, max_size=SLOTS),
        rows=st.lists(st.integers(0, SLOTS - 1), min_size=N, max_size=N),
        seed=st.integers(0, 99),
    )
    def check(before: list[int], rows: list[int], seed: int) -> None:
        rng = np.random.default_rng(seed)

        def tokens(n: int) -> tuple[Array, ...]:
            return tuple(rng.standard_normal((n, heads * DIM)).astype(F32) for heads in (HEADS, KV_HEADS, KV_HEADS))

        own = [tuple(tensor(x) for x in case.caches(1)) for _ in range(SLOTS)]
        for slot, length in enumerate(before):
            texts = tokens(length)
            for pos in range(length):
                case.alone([x[pos] for x in texts], *own[slot], pos)
        shared = [tensor(np.concatenate([caches[i].numpy() for caches in own])) for i in range(2)]
        new = tokens(N)
        pos = [before[slot] + rows[:t].count(slot) for t, slot in enumerate(rows)]
        expected = [
            case.alone([x[t] for x in new], *own[slot], at) for t, (slot, at) in enumerate(zip(rows, pos, strict=True))
        ]
        found = case.together(new, *shared, rows, pos)
        assert equal(found, np.stack(expected))
        for i in range(2):
            assert equal(shared[i].numpy(), np.concatenate([caches[i].numpy() for caches in own]))
        if any(before[slot] for slot in rows):
            elsewhere = case.together(new, *shared, [(slot + 1) % SLOTS for slot in rows], pos)
            assert not equal(elsewhere, np.stack(expected))  # the negative control

    check()


def test_rows_against_numpy() -> None:
    """Two sequences of seven and five tokens, their last two rows each in one call."""
    case, rng, lengths = CASES["plain"], np.random.default_rng(5), (7, 5)
    keys, values = case.caches(SLOTS)
    texts = [[rng.standard_normal((n, h, DIM)).astype(F32) for h in (HEADS, KV_HEADS, KV_HEADS)] for n in lengths]
    for slot, (_, k, v) in enumerate(texts):
        for pos in range(lengths[slot] - 2):
            keys[slot, :, pos // 8, :, pos % 8], values[slot, :, pos] = k[pos], v[pos]
    slot, pos = [0, 1, 1, 0], [5, 3, 4, 6]
    rows = [[texts[s][i][p].reshape(-1) for s, p in zip(slot, pos, strict=True)] for i in range(3)]
    found = case.together([np.stack(x) for x in rows], tensor(keys), tensor(values), slot, pos)

    def expected(scale: float) -> Array:
        answers = []
        for s, p in zip(slot, pos, strict=True):
            q, k, v = (x.astype(np.float64) for x in texts[s])
            scores = np.einsum("hd,jhd->hj", q[p], np.repeat(k[: p + 1], 2, 1)) * scale
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            answers.append(np.einsum("hj,jhd->hd", weights, np.repeat(v[: p + 1], 2, 1)).reshape(-1))
        return np.stack(answers)

    np.testing.assert_allclose(found, expected(0.2), atol=2e-6, rtol=0)
    assert np.abs(found - expected(0.21)).max() > 1e-4


@pytest.mark.parametrize(("rotary_dim", "interleaved"), [(32, False), (24, True)])
def test_rope_at_positions_of_their_own(rotary_dim: int, interleaved: bool) -> None:
    rng, positions = np.random.default_rng(0), [5, 0, 63, 5]
    x = rng.standard_normal((1, N, HEADS * 32)).astype(F32)
    tables = [tensor(rng.standard_normal((64, rotary_dim // 2)).astype(F32)) for _ in range(2)]
    sizes = HEADS, 32, rotary_dim, 64, interleaved

    def rows(pos: list[int]) -> Array:
        y = tensor(np.zeros_like(x))
        compiled(rope_rows(AVX2, N, *sizes))(tensor(x), *tables, tensor(np.array(pos, np.int64)), y)
        found: Array = y.numpy()
        return found

    for t, pos in enumerate(positions):
        alone = tensor(np.zeros((1, 1, HEADS * 32), F32))
        compiled(rope(AVX2, 1, *sizes))(tensor(x[:, t : t + 1]), *tables, pos, alone)
        assert equal(alone.numpy()[0, 0], rows(positions)[0, t])
        assert not equal(alone.numpy()[0, 0], rows([p + 1 - p // 63 * 2 for p in positions])[0, t])


def test_learned_positions_of_their_own() -> None:
    table, ids = np.random.default_rng(0).standard_normal((40, 24)).astype(np.float16), np.zeros((1, N), np.int64)
    positions = np.array([7, 0, 39, 7])
    y = tensor(np.zeros((1, N, 24), F32))
    compiled(learned_positions_rows(AVX2, N, 40, 24, "float16"))(tensor(table), tensor(ids), tensor(positions), y)
    assert equal(y.numpy()[0], table[positions].astype(F32))
    compiled(learned_positions(AVX2, N, 40, 24, "float16"))(tensor(table), tensor(ids), 7, y)
    assert not equal(y.numpy()[0], table[positions].astype(F32))  # one after the other, the negative control
