"""int8 activations with block-quantised weights on this machine, bit for bit as numpy computes them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from int8_activations import CASES, LONG, ROWS, Array, Case, fused_multiply_add, multiply, stored
from requirements import only_where

from targets.boards import load_board
from targets.cpu.dot import STEP
from targets.cpu.kernels.linear_int import linear_int, quantise_rows
from targets.cpu.target import tvm_target
from targets.cpu.tile import CpuTile, cpu_tile
from targets.host.cpuinfo import read_cpus

F32 = np.float32


@pytest.fixture(scope="module")
def host() -> tuple[CpuTile, Any]:
    core = load_board("host", measure=False).clusters[0].core
    return cpu_tile(core), tvm_target(core)


def compiled(functions: dict[str, Any], target: Any) -> Any:
    """One module of all these kernels."""
    named = {name: func.with_attr("global_symbol", name) for name, func in functions.items()}
    return tvm.compile(tvm.IRModule(named), target=target).mod


def run(func: Any, inputs: tuple[Array, ...], *outputs: tuple[tuple[int, ...], str]) -> list[Array]:
    """Call a kernel; its outputs are its last parameters."""
    results = [tvm.runtime.tensor(np.full(shape, 77, dtype)) for shape, dtype in outputs]
    func(*(tvm.runtime.tensor(np.ascontiguousarray(a)) for a in inputs), *results)
    return [result.numpy() for result in results]


def test_the_emulation_rounds_once() -> None:
    """a * b + c with halves that a second rounding would decide, against whole numbers."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-(1 << 24), 1 << 24, 4096) for _ in range(2))
    c = rng.integers(-(1 << 24), 1 << 24, 4096) << 14
    given = [v.astype(F32) for v in (a, b, c)]
    exact = [int(p) * int(q) + int(r) for p, q, r in zip(*(v.astype(np.int64) for v in given), strict=True)]
    fused = fused_multiply_add(*given)
    assert all(float(y) == rounded(value) for y, value in zip(fused, exact, strict=True))
    assert not np.array_equal(fused, given[0] * given[1] + given[2])  # twice rounded


def rounded(value: int) -> float:
    """A whole number with 24 bits, halves to even."""
    shift = max(0, value.bit_length() - 24)
    whole, rest = divmod(value, 1 << shift)
    half = 1 << shift >> 1
    up = rest > half or (rest == half and shift > 0 and whole % 2 == 1)
    return float((whole + up) << shift)


@pytest.mark.parametrize("dtype", ["int8", "int16"])
def test_rows_become_codes(host: tuple[CpuTile, Any], dtype: str) -> None:
    tile, target = host
    x = Case(8).rows(5)
    (n, k), steps = x.shape, x.shape[1] // STEP
    kernel = compiled({"quantise": quantise_rows(tile, n, k, dtype)}, target)["quantise"]
    shapes = ((1, n, k), dtype), ((1, n, steps), "float32"), ((1, n, steps), "int32")
    codes, scale, total = run(kernel, (x[None],), *shapes)
    for made, expected in zip((codes, scale, total), stored(x, tile), strict=True):
        assert np.array_equal(made[0], expected)
    assert abs(codes).max() == 127
    assert not np.array_equal(run(kernel, (x[None] * F32(1.01),), *shapes)[1], scale)
    for odd in (np.inf, -np.inf, np.nan):
        x[1, 40] = odd
        scale = run(kernel, (x[None],), *shapes)[1]
        assert (~np.isfinite(scale)).ravel().nonzero() == (n + 1,)  # of step 1, row 1


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, LONG], ids=lambda case: case.name)
def test_products_have_the_bits_of_numpy(host: tuple[CpuTile, Any], case: Case) -> None:
    tile, target = host
    module = compiled({f"rows_{n}": linear_int(tile, n, *case.format) for n in ROWS}, target)
    expected = case.expected()
    for n in ROWS:
        (y,) = run(
            module[f"rows_{n}"],
            case.inputs(tile, n),
            ((1, n, case.columns), "float32"),
        )
        assert np.array_equal(y[0], expected[:n]), n


# What another x86-64 core multiplies with, and the flag of /proc/cpuinfo that says whether this machine can, too.
OTHERS = {"pmadd": "avx2", "vnni 256": "avx_vnni", "vnni 512": "avx512_vnni"}


@pytest.mark.parametrize("case", [CASES[1], CASES[5]], ids=lambda case: case.name)
@pytest.mark.parametrize("name", OTHERS)
def test_every_dot_of_this_machine_has_the_bits_of_numpy(host: tuple[CpuTile, Any], case: Case, name: str) -> None:
    flags = next(iter(read_cpus(Path("/")).values())).get("flags", "").split()
    only_where(OTHERS[name] in flags, f"this CPU has no {OTHERS[name]}")
    lanes = 16 if name == "vnni 512" else 8
    tile = dataclasses.replace(host[0], lanes=lanes, panel=64 if lanes == 16 else 16, dot=name)
    module = compiled({f"rows_{n}": linear_int(tile, n, *case.format) for n in (1, 8)}, host[1])
    for n in (1, 8):
        func, given, shape = module[f"rows_{n}"], case.inputs(tile, n), ((1, n, case.columns), "float32")
        assert np.array_equal(run(func, given, shape)[0][0], case.expected(n))
        given[2][0, 0, 0] += 1  # the negative control: another sum of codes
        assert not np.array_equal(run(func, given, shape)[0][0], case.expected(n))


@pytest.mark.parametrize("case", [CASES[1], CASES[5]], ids=lambda case: case.name)
def test_a_wrong_operand_shows(host: tuple[CpuTile, Any], case: Case) -> None:
    """The negative controls: one code of a row, one of a weight, one scale, one zero point."""
    tile, target = host
    kernel = compiled({"rows_3": linear_int(tile, 3, *case.format)}, target)["rows_3"]
    given, shape = case.inputs(tile, 3), ((1, 3, case.columns), "float32")
    expected = case.expected(3)
    assert np.array_equal(run(kernel, given, shape)[0][0], expected)
    for i, argument in enumerate(given):
        wrong = list(given)
        wrong[i] = argument.copy()
        wrong[i].flat[-1 if i < 3 else -tile.panel] += 1  # of the last row; of the first column of the last panel
        assert not np.array_equal(run(kernel, tuple(wrong), shape)[0][0], expected), i


def test_the_emulation_is_near_the_product() -> None:
    """What the codes lose: half a code, so 1/254 of the largest |x| of 32 values, times the sum of |w|."""
    for case in CASES:
        x, (values, scale, zero) = case.rows(), case.weights()
        middle = F32(1 << (case.bits - 1)) if zero is None else np.repeat(zero, case.block, 1)[:, : case.k].astype(F32)
        w = (values.astype(F32) - middle) * np.repeat(scale.astype(F32), case.block, 1)[:, : case.k]
        top = np.repeat(np.abs(x.reshape(len(x), -1, STEP)).max(-1), STEP, 1)
        bound = (top / 254) @ np.abs(w).T * 1.001 + 1e-3
        difference = np.abs(multiply(x, values, scale, zero, case.bits, case.block) - x @ w.T)
        assert (difference <= bound).all()
        assert difference.max() > 1e-2  # it is not the float product
