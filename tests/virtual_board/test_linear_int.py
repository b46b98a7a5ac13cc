"""Kernels with int8 activations for Arm cores, in the emulator: the bits of numpy, whatever a core multiplies with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_kernels import Call, run_on_board
from int8_activations import CASES, LONG, ROWS, Case, stored

from targets.cpu import core
from targets.cpu.dot import STEP
from targets.cpu.kernels.linear_int import linear_int, quantise_rows
from targets.cpu.tile import cpu_tile

pytestmark = [pytest.mark.slow, pytest.mark.virtual_board]

_FEW = (1, 3, 12)  # rows, for the formats that differ only in how a scale is made
# core -> what is emulated: without dot products, with them, with int8 matrices (QEMU 7.2 has no such Cortex)
_CORES = {"cortex-a53": "cortex-a53", "cortex-a76": "cortex-a76", "cortex-a710": "max"}


def _called() -> list[tuple[Case, int]]:
    """Formats and rows of linear_int."""
    found = [(case, n) for case in CASES for n in (ROWS if case.zero_dtype == "uint8" else _FEW)]
    return [*found, *((LONG, n) for n in _FEW)]


@pytest.mark.parametrize(
    ("name", "cpu"),
    [pytest.param(*core, marks=[] if core[0] == "cortex-a76" else pytest.mark.deep) for core in _CORES.items()],
)
def test_the_board_has_the_bits_of_numpy(virtual_board: Any, tmp_path: Path, name: str, cpu: str) -> None:
    tile = cpu_tile(core(name))
    kernels: dict[str, Any] = {}
    calls: dict[str, Call] = {}
    for case, n in _called():
        key = f"{case.name}_rows_{n}"
        kernels[key] = linear_int(tile, n, *case.format)
        calls[key] = Call(key, case.inputs(tile, n), (((1, n, case.columns), "float32"),))
    case = Case(8)
    for n in ROWS:
        key, steps = f"quantise_{n}", case.k // STEP
        kernels[key] = quantise_rows(tile, n, case.k, "int8")
        shapes = ((1, n, case.k), "int8"), ((1, n, steps), "float32"), ((1, n, steps), "int32")
        calls[key] = Call(key, (case.rows(n)[None],), shapes)
    odd = case.rows(3)
    odd[1, 40], odd[2, 40] = np.nan, np.inf
    calls["quantise_odd"] = Call("quantise_3", (odd[None],), calls["quantise_3"].outputs)
    right = calls[f"{CASES[1].name}_rows_8"]
    for i, argument in enumerate(right.inputs):  # the negative controls: one number of each argument
        wrong = argument.copy()
        wrong.flat[-1 if i < 3 else -tile.panel] += 1
        calls[f"wrong_{i}"] = Call(right.kernel, (*right.inputs[:i], wrong, *right.inputs[i + 1 :]), right.outputs)

    made = run_on_board(virtual_board, tmp_path, core(name), cpu, kernels, calls)

    for given, n in _called():
        (y,) = made[f"{given.name}_rows_{n}"]
        assert np.array_equal(y[0], given.expected(n)), (given, n)
    for n in ROWS:
        for part, expected in zip(made[f"quantise_{n}"], stored(case.rows(n), tile), strict=True):
            assert np.array_equal(part[0], expected), n
    assert (~np.isfinite(made["quantise_odd"][1][0])).nonzero()[0].tolist() == [1, 2]
    for i in range(len(right.inputs)):
        assert not np.array_equal(made[f"wrong_{i}"][0][0], CASES[1].expected(8)), i
