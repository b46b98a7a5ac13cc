"""Every OpenCL kernel gives the CPU kernel's numbers; a product's row has the same bits for every number of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from targets.cpu.linker import host_link
from targets.cpu.tile import CpuTile
from targets.opencl.tile import GpuTile

Array = npt.NDArray[Any]
GPU, CPU = GpuTile(), CpuTile(lanes=8, panel=16, accumulators=12, dot="pmadd")
F32 = np.float32
N, WIDTH, HEADS, KV_HEADS, DIM, CONTEXT = 5, 96, 4, 2, 32, 64


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


@dataclass(frozen=True)
class Case:
    """A kernel of both processors.

    Attributes:
        args: its arguments besides the tile.
        inputs: its inputs; an integer is a position.
        out: shape of what is compared.
        scratch: of the GPU's kernel, shapes and types.
        within: largest difference, beside 1 for values of about 1; the orders of their sums differ.
        caches: the shapes of caches on the CPU where they differ: keys have the lanes of the tile.
    """

    args: tuple[Any, ...]
    inputs: Callable[[], list[Any]]
    out: tuple[int, ...]
    scratch: tuple[tuple[tuple[int, ...], str], ...] = ()
    within: float = 0.0
    dtype: str = "float32"
    caches: bool = field(default=False)


def weights(k: int, columns: int, dtype: str) -> Array:
    from passes.lower.pack import to_panels

    return to_panels(normal(k, columns, seed=1).astype(dtype), 16)


def blocks(bits: int, k: int, columns: int, zeros: bool) -> list[Array]:
    """Packed block-quantised weights: values, scales, zero points."""
    from passes.lower.pack import pack_quantised, to_panels

    rng = np.random.default_rng(2)
    q = rng.integers(0, 256, (columns, k // 32, 32 * bits // 8)).astype(np.uint8)
    scale = rng.uniform(0.01, 0.1, (columns, k // 32)).astype(np.float16)
    zero = rng.integers(0, 1 << bits, (columns, k // 32)).astype(np.uint8)
    none = np.zeros((1, 1, 1), np.uint8)
    return [pack_quantised(q, bits, k, 16), to_panels(scale.T, 16), to_panels(zero.T, 16) if zeros else none]


def x(seed: int = 0) -> Array:
    return normal(1, N, WIDTH, seed=seed)


def ids(vocab: int) -> Array:
    return np.random.default_rng(4).integers(0, vocab, (1, N))


def attention_inputs() -> list[Any]:
    q, k, v = normal(1, N, HEADS * DIM), normal(1, N, KV_HEADS * DIM, seed=1), normal(1, N, KV_HEADS * DIM, seed=2)
    keys, values = normal(1, KV_HEADS, CONTEXT, DIM, seed=3), normal(1, KV_HEADS, CONTEXT, DIM, seed=4)
    return [q, k, v, keys, values, 40]


ROW = (1, N, WIDTH)
CASES: dict[str, Case] = {
    **{f"linear.linear {d}": Case(
        (N, WIDTH, 40, d), lambda d=d: [x(), weights(WIDTH, 40, d)], (1, N, 40), within=1e-6, dtype=d)
       for d in ("float32", "float16")},
    **{f"linear_nbits.linear_nbits {bits} {zeros}": Case(
        (N, WIDTH, 40, bits, 32, "float16", zeros),
        lambda bits=bits, zeros=zeros: [x(), *blocks(bits, WIDTH, 40, zeros)], (1, N, 40), within=1e-6)
       for bits in (4, 8) for zeros in (False, True)},
    **{f"embedding.embedding {d}": Case((N, 40, WIDTH, d), lambda d=d: [weights(WIDTH, 40, d), ids(40)], ROW, dtype=d)
       for d in ("float32", "float16")},
    **{f"embedding.embedding_nbits {bits}": Case(
        (N, 40, WIDTH, bits, 32, "float16", True),
        lambda bits=bits: [*blocks(bits, WIDTH, 40, True), ids(40)], ROW, within=1e-6)
       for bits in (4, 8)},
    "norm.rms_norm": Case((N, WIDTH, 1, 1e-5), lambda: [x(), normal(WIDTH)], ROW, (((N, 2), "float32"),), 1e-6),
    "norm.rms_norm heads": Case((N, WIDTH, 3, 1e-5), lambda: [x(), normal(32)], ROW, (((3 * N, 1), "float32"),), 1e-6),
    "norm.add_rms_norm": Case(
        (N, WIDTH, 1e-5), lambda: [x(), x(1), normal(WIDTH), np.zeros(ROW, F32)], ROW, (((N, 2), "float32"),), 1e-6),
    "norm.layer_norm": Case((N, WIDTH, 1e-5), lambda: [x(), normal(WIDTH), normal(WIDTH, seed=1)], ROW, within=1e-6),
    "norm.layer_norm heads": Case(
        (N, WIDTH, 1e-5, 3, True), lambda: [x(), normal(WIDTH), normal(WIDTH, seed=1)], ROW, within=1e-6),
    "elementwise.add": Case((N, WIDTH), lambda: [x(), x(1)], ROW),
    "elementwise.add_bias": Case((N, WIDTH), lambda: [x(), normal(WIDTH)], ROW),
    "elementwise.silu_mul": Case((N, WIDTH), lambda: [x(), x(1)], ROW, within=1e-6),
    "elementwise.gelu_mul": Case((N, WIDTH, True), lambda: [x(), x(1)], ROW, within=1e-6),
    "elementwise.gelu": Case((N, WIDTH, False), lambda: [x()], ROW, within=1e-6),
    "elementwise.relu": Case((N, WIDTH), lambda: [x()], ROW),
    "elementwise.squared_relu": Case((N, WIDTH), lambda: [x()], ROW),
    "elementwise.tanh": Case((N, WIDTH), lambda: [x()], ROW, within=1e-6),
    "elementwise.clip": Case((N, WIDTH, -0.5, 0.7), lambda: [x()], ROW),
    "elementwise.xielu": Case((N, WIDTH, 0.8, 1.3, 0.5), lambda: [x()], ROW, within=1e-6),
    "elementwise.scale": Case((N, WIDTH, 0.3), lambda: [x()], ROW),
    **{f"rope.rope {kind}": Case(
        (N, 3, 32, 16, CONTEXT, kind == "interleaved"),
        lambda: [x(), normal(CONTEXT, 8), normal(CONTEXT, 8, seed=1), 7], ROW, within=1e-6)
       for kind in ("halves", "interleaved")},
    "attention.attention_cached": Case(
        (N, HEADS, KV_HEADS, DIM, CONTEXT, 0.2, 0, 0.0), attention_inputs, (1, N, HEADS * DIM),
        (((N, HEADS, CONTEXT), "float32"), ((N, HEADS, 2, 2), "float32")), 1e-6, caches=True),
    "argmax.argmax": Case(
        (N, 600), lambda: [normal(1, N, 600)], (1, N), (((N, 3), "float32"), ((N, 3), "int32")), dtype="int64"),
    "take.take_row": Case((N, WIDTH), lambda: [x(), 3], (1, 1, WIDTH)),
    "take.join_columns": Case((N, WIDTH, 40), lambda: [x(), normal(1, N, 40)], (1, N, WIDTH + 40)),
    "elementwise.scale_columns": Case((N, WIDTH), lambda: [x(), normal(WIDTH)], ROW),
    "altup.altup_predict": Case((N, WIDTH, 3), lambda: [x(), normal(1, N, 9)], ROW, within=1e-6),
    "altup.altup_correct": Case(
        (N, WIDTH, 3, 1), lambda: [x(), normal(1, N, 32), normal(1, N, 3)], ROW, within=1e-6),
    "altup.altup_add": Case((N, WIDTH, 3, 1), lambda: [x(), normal(1, N, 32)], ROW),
    "row_statistics.match_magnitude": Case(
        (N, WIDTH, 1e-5), lambda: [x(), x(1)], ROW, (((2, N, 2), "float32"),), within=1e-6),
    "row_statistics.gaussian_top_k": Case(
        (N, WIDTH, 0.8), lambda: [x()], ROW, (((N, 2), "float32"), ((N, 2), "float32")), within=1e-6),
    "take.take_columns": Case((N, WIDTH, 8, 16), lambda: [x()], (1, N, 16)),
    **{f"take.learned_positions {d}": Case(
        (N, 40, WIDTH, d), lambda d=d: [normal(40, WIDTH).astype(d), ids(40), 7], ROW, dtype=d)
       for d in ("float32", "float16")},
}  # fmt: skip


# kernels whose bits are compared, with numpy's or with those of the kernel for one sequence, and where
BIT_FOR_BIT = {
    **dict.fromkeys(("linear_int.linear_int", "linear_int.quantise_rows"), "test_linear_int.py"),
    **dict.fromkeys(("attention.attention_rows", "attention.attention_in_slot"), "test_rows_of_sequences.py"),
    **dict.fromkeys(("rope.rope_rows", "take.learned_positions_rows"), "test_rows_of_sequences.py"),
}


def on_cpu(folder: Path, func: Any, inputs: list[Any], out: tuple[int, ...], dtype: str) -> Array:
    """Run a CPU kernel; its only output comes last."""
    import tvm

    path = folder / "kernel.so"
    tvm.compile(func.with_attr("global_symbol", "main"), target="llvm").export_library(str(path), fcompile=host_link())
    y = tvm.runtime.tensor(np.zeros(out, dtype))
    given = [tvm.runtime.tensor(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a for a in inputs]
    tvm.runtime.load_module(str(path))["main"](*given, y)
    return y.numpy()


def key_tiles(keys: Array, lanes: int) -> Array:
    """[1, heads, context, dim] as [1, heads, context / lanes, dim, lanes]."""
    _, heads, context, dim = keys.shape
    return keys.reshape(1, heads, context // lanes, lanes, dim).swapaxes(3, 4)


def both(run: Any, folder: Path, name: str, case: Case, moved: bool = False) -> tuple[Array, Array]:
    """What the GPU's kernel and the CPU's give; `moved`: the first input of the GPU's is shifted by one value."""
    import importlib

    module, function = name.split()[0].split(".")
    modules = (importlib.import_module(f"targets.{where}.kernels.{module}") for where in ("opencl", "cpu"))
    gpu, cpu = (getattr(module, function) for module in modules)
    inputs = case.inputs()
    here, there = list(inputs), list(inputs)
    if case.caches:
        here[3], there[3] = key_tiles(inputs[3], CPU.lanes), key_tiles(inputs[3], GPU.lanes)
    if moved:
        there[0] = np.roll(there[0].ravel(), 1).reshape(there[0].shape)
    dtype = "int64" if case.dtype == "int64" else "float32"
    expected = on_cpu(folder, cpu(CPU, *case.args), here, case.out, dtype)
    return run(gpu(GPU, *case.args), *there, out=(case.out, dtype), scratch=case.scratch), expected


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_numbers_of_the_cpu(run: Any, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    ours, expected = both(run, tmp_path, name, case)
    assert np.abs(ours - expected).max() <= case.within * max(1.0, np.abs(expected).max())
    assert np.abs(expected).max() > 0.1
    ours, expected = both(run, tmp_path, name, case, moved=True)  # the negative control: other inputs are noticed
    assert np.abs(ours - expected).max() > 1e-4


def test_every_kernel_is_compared(factories: dict[str, Any]) -> None:
    compared = {name.split()[0] for name in CASES}
    assert not compared & set(BIT_FOR_BIT)
    assert compared | set(BIT_FOR_BIT) == set(factories)
    for kernel, file in BIT_FOR_BIT.items():
        assert kernel.split(".")[1] in (Path(__file__).parent / file).read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear.linear float32", "linear.linear float16", "4", "8"])
def test_a_row_has_the_same_bits_for_1_to_16_rows(run: Any, name: str) -> None:
    from targets.opencl.kernels.linear import linear
    from targets.opencl.kernels.linear_nbits import linear_nbits

    k, columns, rows = 64, 40, normal(1, 16, 64)
    packed = [weights(k, columns, name.split()[-1])] if "." in name else blocks(int(name), k, columns, zeros=True)
    outputs = {}
    for n in range(1, 17) if name in ("linear.linear float16", "4") else (1, 4, 5, 8, 9, 16):
        func = linear(GPU, n, k, columns, name.split()[-1]) if "." in name else None
        func = func or linear_nbits(GPU, n, k, columns, int(name), 32, "float16", True)
        outputs[n] = run(func, rows[:, :n], *packed, out=((1, n, columns), "float32"))
    for n, y in outputs.items():
        assert np.array_equal(y, outputs[16][:, :n]), n
    assert not np.array_equal(outputs[16][:, :1], outputs[16][:, 1:2])
