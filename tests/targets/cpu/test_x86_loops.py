"""What LLVM makes of the integer kernels' inner loops for x86-64 cores with VNNI: one instruction, and in registers."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

from targets.cpu.dot import DOTS
from targets.cpu.kernels import linear_int
from targets.cpu.kernels.attention_rows import attention_rows
from targets.cpu.tile import cpu_tile
from targets.device import Core

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
UNPACK = ("vpandq", "vpandd", "vpand", "vpxorq", "vpxor", "vgf2p8affineqb", "vpsrlw", "vpternlogd", "vpternlogq")
SCALE = ("vcvtdq2ps", "vmulps", "vfmadd231ps", "vfmadd213ps")


def x86(llvm_cpu: str, vector_bits: int) -> Core:
    """A core with VNNI for vectors of that many bits."""
    wide = vector_bits == 512
    return Core(
        name=llvm_cpu,
        isa="x86-64",
        llvm_cpu=llvm_cpu,
        llvm_features=("-prefer-256-bit",) if wide else (),
        vector_bits=vector_bits,
        vector_registers=32 if wide else 16,
        fp32_flops_per_cycle=64 if wide else 32,
        int8_ops_per_cycle=256 if wide else 128,
        l1d_bytes=32768,
        has_dotprod=True,
        has_fp16=False,
        has_i8mm=False,
        in_order=False,
    )


WIDE = [x86("icelake-server", 512), x86("znver4", 512), x86("cascadelake", 512)]  # the last has no GFNI
WITHOUT_GFNI = {2: 14, 4: 12, 8: 8}
NARROW = x86("alderlake", 256)


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the benchmark, which lies in no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import inner_loops

    yield inner_loops
    del sys.modules["inner_loops"]


def multiplying_loops(loops: Any, kernel: Any) -> list[Any]:
    """The inner loops of a kernel that multiply, after what holds for all."""
    found = [loop for loop in loops.inner_loops(kernel.assembly()) if kernel.multiplications(loop)]
    assert found
    for loop in found:
        assert kernel.steps(loop) in (1, 2, 4), loop  # nothing is multiplied twice, no remainder in another way
        assert loop.count("callq") == 0
    return found


def registers(loop: Any) -> set[str]:
    """The kinds of vectors that are multiplied."""
    return {line.split("%")[-1][:3] for line in loop.instructions if line.startswith("vpdpbusd")}


@pytest.mark.parametrize("core", WIDE)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_vectors_of_512_bits(loops: Any, core: Core, bits: int) -> None:
    """The counts beside it are those that the cost model reads."""
    dot = DOTS["vnni 512"]
    for n in (1, 4, 8):
        kernel = loops.Kernel(core, bits, n)
        assert kernel.dot == "vnni 512"
        (loop,) = multiplying_loops(loops, kernel)
        assert (registers(loop), loop.stack, loop.scalar) == ({"zmm"}, 0, [])
        assert kernel.steps(loop) == 1
        vectors, rows = kernel.vectors, kernel.rows
        unpack = WITHOUT_GFNI[bits] if core.llvm_cpu == "cascadelake" else dot.unpack[bits]
        assert loop.count(*UNPACK) == vectors * unpack
        assert loop.count("vpdpbusd", *SCALE) == vectors * rows * dot.row[bits]
        scales = -(-vectors * dot.columns * 2 // 64)  # cache lines of float16; those of weights are `bits` a vector
        assert loop.count("prefetcht0") == vectors * bits + scales


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_vectors_of_256_bits(loops: Any, bits: int) -> None:
    for n in (1, 4, 8):
        for loop in multiplying_loops(loops, loops.Kernel(NARROW, bits, n)):
            assert (registers(loop), loop.scalar) == ({"ymm"}, [])
            assert loop.stack <= 0.05 * len(loop.instructions), n


@pytest.mark.slow
@pytest.mark.parametrize("core", [*WIDE, NARROW])
def test_zero_points(loops: Any, core: Core) -> None:
    for n in (1, 4, 8):
        for loop in multiplying_loops(loops, loops.Kernel(core, 4, n, zeros=True)):
            assert loop.stack <= 0.07 * len(loop.instructions), n  # addresses


def asked_at_once(loop: Any) -> int:
    """The most cache lines that are asked for without a product between them."""
    names = [line.split()[0] for line in loop.instructions if line.startswith(("prefetcht0", "vpdpbusd"))]
    return max(len(list(run)) for name, run in itertools.groupby(names) if name == "prefetcht0")


def test_lines_are_asked_for_between_products(loops: Any) -> None:
    """As code for this machine is scheduled; the negative control is LLVM's model of Zen 4, which asks at once."""
    general = dataclasses.replace(
        x86("x86-64-v4", 512), llvm_features=("-prefer-256-bit", "+avx512vnni", "+gfni", "+avx512vbmi")
    )
    for n in (2, 4, 8):
        kernel, other = loops.Kernel(general, 8, n), loops.Kernel(WIDE[1], 8, n)
        (loop,), (control,) = multiplying_loops(loops, kernel), multiplying_loops(loops, other)
        asked = loop.count("prefetcht0")
        assert asked_at_once(loop) <= asked // 2, n
        assert control.count("prefetcht0") == asked
        assert asked_at_once(control) >= asked - 1, n


def test_a_tile_that_is_too_large_shows(loops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: 32 sums, with their addends and operands, are more than 32 registers."""
    monkeypatch.setitem(DOTS, "vnni 512", dataclasses.replace(DOTS["vnni 512"], side=(4,) * 8))
    linear_int.linear_int.cache_clear()
    found = multiplying_loops(loops, loops.Kernel(WIDE[0], 8, 8))
    linear_int.linear_int.cache_clear()
    assert all(loop.stack > 0.05 * len(loop.instructions) for loop in found)


def test_attention_of_rows_finds_its_place_once(loops: Any) -> None:
    """A task's slot, head and position are known before its loops: none divides or keeps its sums on the stack."""
    core = WIDE[0]
    kernel = attention_rows(cpu_tile(core), 8, 8, 12, 4, 64, 640, 0.125, 0, 0.0)
    adds = "vfmadd231ps", "vfmadd213ps"
    found = loops.inner_loops(loops.assembly(core, kernel))
    of_sums = [loop for loop in found if loop.count(*adds) >= 24]
    assert len(of_sums) == 3  # keys in vectors side by side, those that are left, and values
    for loop in of_sums:
        assert (loop.count("idivq", "divl", "cqto"), loop.stack) == (0, 0)
        assert loop.count(*adds) / len(loop.instructions) > 0.25


def test_loops_are_found(loops: Any) -> None:
    text = """
main:
.LBB0_1:                                # =>This Loop Header: Depth=1
	vmovups	(%rdi), %zmm1
	.p2align	4
.LBB0_2:                                #   Parent Loop BB0_1 Depth=1
	vpdpbusd	(%r9,%rcx,4){1to16}, %zmm0, %zmm1
	{vex}	vpdpbusd	%ymm0, %ymm2, %ymm1
	vmovups	%zmm0, 64(%rsp)                 # 64-byte Spill
	vfmadd231ss	%xmm0, %xmm1, %xmm2
	jne	.LBB0_2
	vmulps	%zmm1, %zmm2, %zmm3
	jmp	.LBB0_1
	je	.LBB0_3
.LBB0_3:
	retq
"""
    (loop,) = loops.inner_loops(text)
    assert [line.split()[0] for line in loop.instructions] == ["vpdpbusd", "vpdpbusd", "vmovups", "vfmadd231ss", "jne"]
    assert loop.stack == 1
    assert loop.scalar == ["vfmadd231ss\t%xmm0, %xmm1, %xmm2"]
    assert registers(loop) == {"zmm", "ymm"}
