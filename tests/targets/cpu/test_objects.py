"""Kernels compiled one by one: whatever lies in the cache, a library is the same, and it is not compiled again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from passes.testing import TinyDecoder
from targets.backend import HOST, backend
from targets.boards import load_board
from targets.cpu import objects
from targets.cpu.objects import CpuKernels, build_library, primitive_functions
from targets.kernels.kernel_cache import KernelCache
from tests.support.lowered import lower_whole

CORE = load_board("host", measure=False).clusters[0].core
CPU = backend(HOST)


def lowered(kernels: CpuKernels | None) -> Any:
    tile = CPU.tile(CORE, None)
    return lower_whole(TinyDecoder(qkv_bias=True).decoder(), tile, 32, (1,), 4, kernels={HOST: kernels}).mod


def kernels_in(folder: Path | None, bodies: bool = False) -> CpuKernels:
    return CpuKernels(CPU.makers(), CPU.tvm_target(CORE), KernelCache(folder), bodies)


def build(kernels: CpuKernels, path: Path) -> bytes:
    said: list[tuple[int, int]] = []
    build_library(lowered(kernels), CORE, path, kernels, lambda what, done, total: said.append((done, total)))
    assert [done for done, _ in said] == list(range(1, len(said) + 1))
    return path.read_bytes()


def test_the_same_library_without_parsing_or_compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cold = build(kernels_in(tmp_path / "kernels"), tmp_path / "cold.so")
    half = sorted((tmp_path / "kernels").iterdir())[::2]
    for file in half:
        file.unlink()
    assert build(kernels_in(tmp_path / "kernels"), tmp_path / "half.so") == cold
    assert build(kernels_in(None), tmp_path / "none.so") == cold

    def refuse(*_: object) -> None:
        raise AssertionError("a kernel in the cache was parsed or compiled")

    monkeypatch.setattr(objects, "made", refuse)
    monkeypatch.setattr(objects, "_compile", refuse)
    assert build(kernels_in(tmp_path / "kernels"), tmp_path / "warm.so") == cold
    with pytest.raises(AssertionError, match="was parsed"):
        build(kernels_in(tmp_path / "another"), tmp_path / "other.so")


def test_bodies_are_whole_where_they_are_to_be_read(tmp_path: Path) -> None:
    build(kernels_in(tmp_path), tmp_path / "library.so")
    declared, whole = (primitive_functions(lowered(kernels_in(tmp_path, bodies))) for bodies in (False, True))
    assert list(declared) == list(whole)
    assert all("evaluate(0)" in f.script() for f in declared.values())
    assert not any("evaluate(0)" in f.script() for f in whole.values())


def test_kernels_of_equal_parameters_stay_apart() -> None:
    """A bias of a query and of a key have one size here, an addition and a scaling might."""
    kernels = kernels_in(None)
    names = list(primitive_functions(lowered(kernels)))
    assert len(names) == len({name.rsplit("_", 1)[1] for name in names})
    assert {name.rsplit("_", 1)[0] for name in names} >= set(primitive_functions(lowered(None)))


def test_what_another_process_compiles_meanwhile_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module with a body and a declaration of one kernel would have two, and one of them nothing in it."""
    cold = build(kernels_in(tmp_path / "kernels"), tmp_path / "cold.so")
    full, late = KernelCache(tmp_path / "kernels"), KernelCache(tmp_path / "late")
    own, asked = late.get, set[str]()

    def get(symbol: str) -> Any:
        """Absent at first, and there the next time."""
        if symbol in asked and own(symbol) is None:
            late.put(symbol, full.get(symbol))
        asked.add(symbol)
        return own(symbol)

    monkeypatch.setattr(late, "get", get)
    kernels = CpuKernels(CPU.makers(), CPU.tvm_target(CORE), late)
    names = list(primitive_functions(lowered(kernels)))
    assert names == list(primitive_functions(lowered(kernels_in(None))))
    assert build(kernels, tmp_path / "late.so") == cold
