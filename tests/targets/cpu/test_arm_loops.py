"""What LLVM makes of the integer kernels' inner loops for Arm cores: the right instructions, and in registers."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

from targets.cpu import core
from targets.cpu.dot import DOTS
from targets.cpu.kernels import linear_int
from targets.cpu.kernels.attention import attention_cached
from targets.cpu.tile import cpu_tile

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
WITHOUT = ("cortex-a53", "cortex-a72")  # no dot product
MATRICES = ("cortex-a510", "cortex-a710")  # int8 matrix multiplication
CORES = (*WITHOUT, "cortex-a55", "cortex-a76", "cortex-a78", *MATRICES)
# Of a loop's instructions, those that may touch the stack. LLVM starts so many loads early for Cortex-A72 that it
# runs out of registers with 8 sums; with 4 it does not, and takes 6 to 10 % more cycles by llvm-mca.
STACK = {"sdot": 0.01, "smmla": 0.02, "smull": 0.1}
STACK_2 = {"sdot": 0.02, "smmla": 0.03, "smull": 0.1}  # with weights of 2 bits, of which a word gives four operands
ZEROS = 0.08  # with zero points


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the benchmark, which lies in no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import inner_loops

    yield inner_loops
    del sys.modules["inner_loops"]


def multiplying_loops(loops: Any, kernel: Any) -> list[Any]:
    """The inner loops of a kernel that multiply, after what holds for all; LLVM may write out the loop around them."""
    found = [loop for loop in loops.inner_loops(kernel.assembly()) if kernel.multiplications(loop)]
    assert found
    for loop in found:
        assert kernel.steps(loop) in (1, 2, 4), loop  # nothing is multiplied twice, no remainder in another way
        assert loop.count("bl", "blr") == 0
        assert loop.count("fmla") >= kernel.multiplications(loop) / loops.PER_STEP[kernel.dot]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bits"), [*itertools.product(CORES, (8, 4)), ("cortex-a53", 2), ("cortex-a76", 2), ("cortex-a510", 2)]
)
def test_inner_loops(loops: Any, name: str, bits: int) -> None:
    for n in (1, 2, 4, 5, 8):
        kernel = loops.Kernel(core(name), bits, n)
        expected = "smull" if name in WITHOUT else "smmla" if name in MATRICES and n in (4, 8) else "sdot"
        assert kernel.dot == expected
        for loop in multiplying_loops(loops, kernel):
            assert loop.scalar == [], n
            assert loop.stack <= (STACK if bits > 2 else STACK_2)[kernel.dot] * len(loop.instructions), (n, loop.stack)
            by_lane = [line for line in loop.instructions if line.startswith("sdot") and line.endswith("]")]
            assert len(by_lane) == loop.count("sdot")
            assert loop.count("zip1", "zip2", "uzp1", "uzp2", "tbl", "ext") <= shuffles(kernel, loop), n


def shuffles(kernel: Any, loop: Any) -> float:
    """Permutations that smmla needs: operands of 8 of k, starts of pairs of rows, and sums by row."""
    if kernel.dot != "smmla":
        return 0
    return float(kernel.steps(loop) * (kernel.vectors * (8 + kernel.rows) + kernel.rows / 2))


@pytest.mark.slow
@pytest.mark.parametrize("name", CORES)
def test_inner_loops_with_zero_points(loops: Any, name: str) -> None:
    for n in (1, 4):
        for loop in multiplying_loops(loops, loops.Kernel(core(name), 4, n, zeros=True)):
            assert loop.stack <= ZEROS * len(loop.instructions), (n, loop.stack)


@pytest.mark.slow
def test_a_tile_that_is_too_large_shows(loops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: 16 sums, with their addends and operands, are more than 32 registers."""
    monkeypatch.setitem(DOTS, "sdot in order", dataclasses.replace(DOTS["sdot in order"], side=(4, 4, 4, 4)))
    linear_int.linear_int.cache_clear()
    kernel = loops.Kernel(core("cortex-a55"), 4, 4)
    found = multiplying_loops(loops, kernel)
    linear_int.linear_int.cache_clear()
    assert all(loop.stack > 0.05 * len(loop.instructions) for loop in found)


def test_loops_are_found(loops: Any) -> None:
    text = """
main:
.LBB0_1:                                // =>This Loop Header: Depth=1
	ldr	q1, [x0]
.LBB0_2:                                //   Parent Loop BB0_1 Depth=1
	sdot	v0.4s, v1.16b, v2.4b[0]
	str	q0, [sp, #16]                   // 16-byte Folded Spill
	fmadd	s0, s1, s2, s3
	.loc	1 2 3
	b.ne	.LBB0_2
	fmul	v0.4s, v0.4s, v1.4s
	cbnz	x1, .LBB0_1
	b.eq	.LBB0_3
.LBB0_3:
	ret
"""
    (loop,) = loops.inner_loops(text)
    assert [line.split()[0] for line in loop.instructions] == ["sdot", "str", "fmadd", "b.ne"]
    assert loop.stack == 1
    assert loop.scalar == ["fmadd\ts0, s1, s2, s3"]
    assert loop.count("sdot", "ret") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", CORES)
def test_codes_are_made_in_vectors(loops: Any, name: str) -> None:
    tile = cpu_tile(core(name))
    text = loops.assembly(core(name), linear_int.quantise_rows(tile, 4, 1024, "int8"))
    loop = loops.hot_loop(text, lambda loop: loop.count("fcvtzs"))
    steps = loop.count("addv")
    assert steps in (1, 2)
    assert loop.count("fcvtzs") == loop.count("frinti") == 8 * steps
    assert not any(line.split()[1].startswith("w") for line in loop.instructions if line.startswith("fcvtzs"))
    assert loop.stack == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cortex-a55", "cortex-a76"])
def test_attention_keeps_its_sums_in_registers(loops: Any, name: str) -> None:
    """Scores of a tile of rows, then their values: the loops with the most additions hardly touch the stack."""
    tile, heads = cpu_tile(core(name)), (9, 3, 64)
    text = loops.assembly(core(name), attention_cached(tile, 4, *heads, 256, 0.125, 0, 0.0))
    cut = tile.attention(4, 3, 16)
    assert cut.rows == 2
    found = [loop for loop in loops.inner_loops(text) if loop.count("fmla") >= 24]
    scores = max(found, key=lambda loop: loop.count("fmla"))
    assert scores.count("fmla") % (6 * cut.key_vectors) == 0
    assert (scores.stack, scores.scalar) == (0, [])
    assert len(found) > 1
    for loop in found:
        assert loop.stack <= 0.12 * len(loop.instructions), loop.stack
