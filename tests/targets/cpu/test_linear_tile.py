"""How float matrix multiplications walk their weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.cpu.linear_tile import LINE_BYTES, LinearTile, linear_tile
from targets.cpu.tile import CpuTile

AVX2 = CpuTile(lanes=8, panel=16, accumulators=12, dot="pmadd")
NEON = CpuTile(lanes=4, panel=16, accumulators=24, dot="sdot")
AVX512 = CpuTile(lanes=16, panel=64, accumulators=24, dot="vnni 512", l1d_bytes=48 << 10)


@pytest.mark.parametrize(
    ("n", "weight_bytes", "expected"),
    [
        (1, 4, LinearTile(rows=1, row_tiles=1, side=4, part=2048, asked=2048, ahead=0)),  # the core sees far enough
        (1, 2, LinearTile(rows=1, row_tiles=1, side=1, part=2048, asked=8, ahead=64)),
        (4, 4, LinearTile(rows=4, row_tiles=1, side=1, part=2048, asked=2048, ahead=0)),
        (6, 4, LinearTile(rows=6, row_tiles=1, side=1, part=2048, asked=4, ahead=32)),
        # 48 KiB hold twice 160 rows of 128 bytes and 4 * 8 bytes of activations for each
        (8, 2, LinearTile(rows=4, row_tiles=2, side=1, part=160, asked=16, ahead=160)),
        (12, 4, LinearTile(rows=6, row_tiles=2, side=1, part=80, asked=8, ahead=80)),
        (40, 2, LinearTile(rows=6, row_tiles=7, side=1, part=2048, asked=2048, ahead=0)),  # too many take turns
    ],
)
def test_tiles_of_a_zen_5_core(n: int, weight_bytes: int, expected: LinearTile) -> None:
    assert linear_tile(AVX512, n, 2048, 32, weight_bytes) == expected
    assert expected.walks == (7 if n == 40 else 1)


@given(
    st.sampled_from([AVX2, NEON, AVX512]),
    st.integers(1, 130),
    st.integers(1, 5000),
    st.integers(1, 300),
    st.sampled_from([2, 4]),
)
def test_every_line_is_asked_for_once(tile: CpuTile, n: int, k: int, panels: int, weight_bytes: int) -> None:
    walk = linear_tile(tile, n, k, panels, weight_bytes)
    assert n <= walk.rows * walk.row_tiles < n + walk.rows
    assert panels % walk.side == 0
    assert walk.rows * walk.side * tile.panel_vectors <= tile.accumulators
    assert k % walk.asked == 0
    assert walk.part == k or walk.part % walk.asked == 0
    if not walk.ahead:
        assert walk.part == k
        return
    lines = walk.asked * walk.side * tile.panel * weight_bytes / LINE_BYTES
    assert walk.asked == 4 or lines <= 2 * tile.lanes * walk.row_tiles  # rounded up to a power of two
    if walk.row_tiles > 1 and walk.part > walk.asked:
        assert walk.part * (2 * walk.side * tile.panel * weight_bytes + 4 * n) <= tile.l1d_bytes
