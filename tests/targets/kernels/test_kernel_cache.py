"""Compiled kernels between compilations: found again, told apart, damaged files and other people's folders not used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from targets.kernels import kernel_cache
from targets.kernels.kernel_cache import CompiledKernel, KernelCache, kernel_symbol

KERNEL = CompiledKernel((((1, 4), "float32"), (None, "int64")), b"\x7fELF\nobject")


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_a_kernel_is_found_again_by_another_process(tmp_path: Path) -> None:
    KernelCache(tmp_path / "kernels").put("add_1", KERNEL)
    again = KernelCache(tmp_path / "kernels")
    assert again.get("add_1") == KERNEL
    assert again.get("add_2") is None
    assert (tmp_path / "kernels").stat().st_mode & 0o777 == 0o700


def test_without_a_folder_it_is_kept_for_this_compilation() -> None:
    cache = KernelCache(None)
    cache.put("add_1", KERNEL)
    assert cache.get("add_1") == KERNEL
    assert KernelCache(None).get("add_1") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:-1] + b"!",
        lambda content: content.replace(b"[[", b"[0, [", 1),
        lambda content: content.replace(b"[[", b"[[7, ", 1),
        lambda content: b"",
        lambda content: b"[]\n",
        lambda content: b"\xff" * 100,
    ],
    ids=["cut", "changed", "three parts", "a number for a parameter", "empty", "a list", "bytes"],
)
def test_a_damaged_file_counts_as_absent(damage: object, tmp_path: Path) -> None:
    KernelCache(tmp_path).put("add_1", KERNEL)
    file = only_file(tmp_path)
    assert callable(damage)
    file.write_bytes(damage(file.read_bytes()))
    assert KernelCache(tmp_path).get("add_1") is None


def test_other_sources_and_versions_are_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KernelCache(tmp_path).put("add_1", KERNEL)
    monkeypatch.setattr(kernel_cache, "_version", lambda: "another")
    assert KernelCache(tmp_path).get("add_1") is None


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    KernelCache(folder).put("add_1", KERNEL)
    folder.chmod(0o777)
    cache = KernelCache(folder)
    assert cache.get("add_1") is None
    cache.put("add_2", KERNEL)
    assert cache.get("add_2") == KERNEL
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_went_away_is_no_error(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path / "kernels")
    (tmp_path / "kernels").rmdir()
    cache.put("add_1", KERNEL)
    cache.remove_oldest()
    assert cache.get("add_1") == KERNEL


def test_what_was_not_read_for_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KernelCache(tmp_path)
    for number, symbol in enumerate(("a", "b", "c")):
        before = set(tmp_path.iterdir())
        cache.put(symbol, KERNEL)
        (new,) = set(tmp_path.iterdir()) - before
        os.utime(new, (number, number))
    KernelCache(tmp_path).get("a")
    monkeypatch.setattr(kernel_cache, "MOST_BYTES", 2 * new.stat().st_size)
    cache.remove_oldest()
    fresh = KernelCache(tmp_path)
    assert [symbol for symbol in ("a", "b", "c") if fresh.get(symbol)] == ["a", "c"]


def test_a_symbol_says_all_that_a_kernel_is_made_from() -> None:
    symbols = {kernel_symbol("add_1", maker, sizes) for maker in ("add", "scale") for sizes in ([("n", 1)], [("n", 2)])}
    assert len(symbols) == 4
    assert kernel_symbol("add_1", "add", [("eps", 1e-5)]) != kernel_symbol("add_1", "add", [("eps", 1.0000001e-5)])
