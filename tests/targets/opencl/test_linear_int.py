"""int8 activations on an OpenCL device: the bits of numpy, and so of the CPU, whatever four products are made by."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from int8_activations import CASES, LONG, ROWS, Array, Case, quantise, words
from requirements import need_program

from targets.cpu.dot import STEP
from targets.opencl.tile import GpuTile

MALI, SMALL = GpuTile(), GpuTile(group=5)
FEW = (CASES[1], CASES[4], CASES[9])  # 4 and 2 bit with zero points, 8 bit without
Run = Any  # the fixture's Kernels, see conftest.py

# What a driver with an extension has; a wrong one shows that it was called.
ARM = """
#define HSD_HAS_cl_arm_integer_dot_product_accumulate_int8
#define cl_arm_integer_dot_product_accumulate_int8 1
int arm_dot_acc(char4 a, char4 b, int c) { return c + a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
"""
ARM_WITHOUT_SUMS = """
#define HSD_HAS_cl_arm_integer_dot_product_int8
#define cl_arm_integer_dot_product_int8 1
int arm_dot(char4 a, char4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }
"""
KHRONOS = """
#define HSD_HAS_cl_khr_integer_dot_product
#define cl_khr_integer_dot_product 1
int dot_4x8packed_ss_int(uint a, uint b) {
  int sum = 0;
  for (int i = 0; i < 4; ++i) sum += (int)(char)(a >> 8 * i) * (int)(char)(b >> 8 * i);
  return sum;
}
"""
EXTENSIONS = {
    "cl_arm_integer_dot_product_accumulate_int8": ("arm_dot_acc", ARM, "return c +", "return 1 + c +"),
    "cl_arm_integer_dot_product_int8": ("arm_dot", ARM_WITHOUT_SUMS, "return a.x", "return 1 + a.x"),
    "cl_khr_integer_dot_product": ("dot_4x8packed_ss_int", KHRONOS, "sum = 0", "sum = 1"),
}


def product(run: Run, tile: GpuTile, case: Case, n: int) -> Array:
    from targets.opencl.kernels.linear_int import linear_int

    func = linear_int(tile, n, *case.format)
    y: Array = run(func, *case.gpu_inputs(tile.panel, n), out=((1, n, case.columns), "float32"))[0]
    return y


@pytest.mark.parametrize("tile", [MALI, SMALL], ids=["MALI", "SMALL"])
def test_rows_become_codes(run: Run, tile: GpuTile) -> None:
    from targets.opencl.kernels.linear_int import quantise_rows

    x = Case(8).rows(5)
    (n, k), steps = x.shape, x.shape[1] // STEP
    codes, scale, total = quantise(x)
    kernel = quantise_rows(tile, n, k, "uint32")
    shapes = ((1, n, k // 4), "uint32"), ((1, n, steps), "float32"), ((1, n, steps), "int32")

    def made(rows: Array) -> list[Array]:
        run(kernel, rows[None], out=shapes[0], scratch=shapes[1:])
        return [after.numpy()[0] for after in run.after]

    for ours, expected in zip(made(x), (words(codes), scale, total), strict=True):
        assert np.array_equal(ours, expected)
    assert not np.array_equal(made(x * np.float32(1.01))[1], scale)
    for odd in (np.inf, -np.inf, np.nan):
        x[1, 40] = odd
        assert (~np.isfinite(made(x)[1])).ravel().nonzero() == (steps + 1,)  # of step 1, row 1


def test_quotients_are_the_nearest_where_a_driver_rounds_them_otherwise(run: Run) -> None:
    """OpenCL lets a quotient be 2.5 units in the last place off; here numbers halfway between codes show it."""
    from targets.opencl.kernels.linear_int import quantise_rows

    rng, n, k = np.random.default_rng(3), 16, 64
    top = rng.uniform(0.5, 2, (n, 2, 1)).astype(np.float32)
    halves = rng.integers(-127, 127, (n, 2, STEP)) + np.float32(0.5)
    x = (halves / (np.float32(127) / top)).astype(np.float32)
    x[..., :1] = top
    x = x.reshape(n, k)
    expected = words(quantise(x)[0])
    shapes = ((1, n, k // 4), "uint32"), ((1, n, 2), "float32"), ((1, n, 2), "int32")
    kernel, quotient = quantise_rows(MALI, n, k, "uint32"), "1.270000e+02f / "
    for factor in (1 - 2.0**-23, 1 + 2.0**-23):
        changed = {quotient: f"{factor!r}f * {quotient}"}
        made = run(kernel, x[None], out=shapes[0], scratch=shapes[1:], changed=changed)
        assert np.array_equal(made[0], expected)
        changed["error_ptr[1] < error_ptr[0]"] = "false"  # the negative control: as the driver has it
        made = run(kernel, x[None], out=shapes[0], scratch=shapes[1:], changed=changed)
        assert not np.array_equal(made[0], expected)


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
@pytest.mark.parametrize(("tile", "n"), [(MALI, 3), (SMALL, 5)], ids=["MALI", "SMALL"])
def test_products_have_the_bits_of_numpy(run: Run, tile: GpuTile, n: int, case: Case) -> None:
    assert np.array_equal(product(run, tile, case, n), case.expected(n))


@pytest.mark.slow
@pytest.mark.parametrize("case", [*CASES, LONG], ids=lambda case: case.name)
def test_every_format_and_number_of_rows_has_the_bits_of_numpy(run: Run, case: Case) -> None:
    for n in ROWS:
        assert np.array_equal(product(run, MALI, case, n), case.expected(n)), n


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_a_wrong_operand_shows(run: Run, case: Case) -> None:
    """The negative controls: one code of a row, one of a weight, one scale, one zero point."""
    from targets.opencl.kernels.linear_int import linear_int

    func, given, out = linear_int(MALI, 3, *case.format), case.gpu_inputs(16, 3), ((1, 3, case.columns), "float32")
    assert np.array_equal(run(func, *given, out=out)[0], case.expected(3))
    for i in range(len(given) - (not case.zero_dtype)):
        if i == 2 and case.bits == 8 and not case.zero_dtype:
            continue  # sums of codes are not read
        wrong = list(given)
        wrong[i] = given[i].copy()
        wrong[i].flat[-1 if i < 3 else -16] += 1  # of the last row; of the first column of the last panel
        assert not np.array_equal(run(func, *wrong, out=out)[0], case.expected(3)), i


@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_what_a_driver_has_makes_the_same_bits(run: Run, extension: str, case: Case) -> None:
    from targets.opencl.kernels.linear_int import linear_int

    _, definition, right, wrong = EXTENSIONS[extension]
    func, given, out = linear_int(MALI, 3, *case.format), case.gpu_inputs(16, 3), ((1, 3, case.columns), "float32")
    for text, same in ((definition, True), (definition.replace(right, wrong), False)):
        y = run(func, *given, out=out, changed={"#if defined(": f"{text}#if defined("})
        assert np.array_equal(y[0], case.expected(3)) == same


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_compiler_of_opencl_c_has_the_functions(run: Run, extension: str, tmp_path: Path) -> None:
    """For spir64, for which clang declares the functions of every extension."""
    from targets.opencl.kernels.linear_int import linear_int

    clang = need_program("clang", "clang-14")
    function = EXTENSIONS[extension][0]
    (tmp_path / "k.cl").write_text(f"#define HSD_HAS_{extension}\n" + run.source(linear_int(MALI, 1, *FEW[0].format)))
    options = ("-x", "cl", "-cl-std=CL3.0", "-Xclang", "-finclude-default-header", "-target", "spir64", "-Werror")
    command = [clang, *options, "-S", "-emit-llvm", str(tmp_path / "k.cl"), "-o", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    calls = [line for line in done.stdout.splitlines() if " call " in line and function in line]
    assert len(calls) >= 4 * 8  # a step of 4 columns


def test_up_to_eight_rows_share_the_weights() -> None:
    for zeros in (False, True):
        for n in range(1, 33):
            wide, rows = MALI.integer_tile(n, zeros)
            assert 2 * wide * rows + wide * (5 + zeros) + 4 <= MALI.registers
            assert rows == n or n > 8
            assert -(-n // rows) == -(-n // 8)
