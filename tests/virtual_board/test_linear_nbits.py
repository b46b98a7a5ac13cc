"""Codes of a table on Arm cores, in the emulator: the numbers of onnxruntime, looked up by TBL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_kernels import Call, run_on_board

from passes.lower.pack import pack_quantised, swap_nibbles, to_panels
from targets.cpu import core
from targets.cpu.kernels.linear_nbits import linear_nbits
from targets.cpu.kernels.table_lookup import lookup
from targets.cpu.tile import cpu_tile
from targets.kernels.code_tables import CODE_TABLES

pytestmark = [pytest.mark.slow, pytest.mark.virtual_board]


def test_the_board_has_the_numbers_of_the_table(virtual_board: Any, tmp_path: Path) -> None:
    tile, k, columns, block = cpu_tile(core("cortex-a53")), 64, 40, 32
    assert lookup(tile) is not None
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (columns, k)).astype(np.uint8)
    absmax = rng.uniform(0.5, 2, (columns, k // block)).astype(np.float32)
    q = pack_quantised(swap_nibbles(codes[:, ::2] << 4 | codes[:, 1::2]), 4, k, tile.panel)
    inputs = np.eye(k, dtype=np.float32)[None], q, to_panels(absmax.T, tile.panel), np.zeros((1, 1, 1), np.uint8)
    kernels = {t: linear_nbits(tile, k, k, columns, 4, block, "float32", False, table=t) for t in CODE_TABLES}
    calls = {t: Call(t, inputs, (((1, k, columns), "float32"),)) for t in CODE_TABLES}
    made = run_on_board(virtual_board, tmp_path, core("cortex-a53"), "cortex-a53", kernels, calls)
    for table, numbers in CODE_TABLES.items():
        expected = np.array(numbers, np.float32)[codes] * np.repeat(absmax, block, 1)
        assert np.array_equal(made[table][0][0].T, expected)
    assert not np.array_equal(made["nf4"][0], made["fp4"][0])  # the negative control
