"""Memory of caches: blocks that are mapped, rows that are copied, and layouts that pages do not fit."""

from __future__ import annotations

import mmap
import os
from types import SimpleNamespace

import numpy as np
import pytest
from requirements import only_where

from hetero_sd.runtime.model import cache_pages
from hetero_sd.runtime.model.cache_pages import CachePages, RowsLost

SLOTS, HEADS, CONTEXT, DIM, LANES = 3, 2, 64, mmap.PAGESIZE // 32, 8
SHAPES = [(SLOTS, HEADS, CONTEXT // LANES, DIM, LANES), (SLOTS, HEADS, CONTEXT, DIM)]  # a block has 8 rows of float32


def filled(dtype: str = "float32", shapes: object = SHAPES) -> CachePages:
    """Caches whose rows say which slot and row they are: 100 * slot + row."""
    pages = CachePages(shapes, dtype, CONTEXT)  # type: ignore[arg-type]
    for slot in range(SLOTS):
        rows = 100 * slot + np.arange(CONTEXT)
        pages.arrays[0][slot] = rows.reshape(-1, 1, LANES)
        pages.arrays[1][slot] = rows[:, None]
    return pages


def rows_of(pages: CachePages, slot: int) -> list[int]:
    """What a slot's rows say, after a look at whether keys and values of all heads say the same."""
    keys, values = pages.arrays
    found = values[slot, 0, :, 0]
    assert (values[slot] == found[:, None]).all()
    assert (keys[slot].swapaxes(2, 3).reshape(HEADS, CONTEXT, DIM) == found[:, None]).all()
    return [int(row) for row in found]


@pytest.mark.parametrize(("dtype", "rows"), [("float32", 8), ("float16", 16), ("uint16", 16), ("int8", 32)])
def test_a_block_is_the_fewest_rows_that_fill_pages(dtype: str, rows: int) -> None:
    only_where(hasattr(os, "memfd_create"), "pages are mapped on Linux")
    pages = CachePages(SHAPES, dtype, CONTEXT)
    assert (pages.block_rows, pages.blocks_of_slot, pages.blocks) == (rows, 64 // rows, 2 * SLOTS * 64 // rows)
    assert all(array.ctypes.data % 64 == 0 for array in pages.arrays)


def test_mapped_blocks_are_the_same_memory() -> None:
    only_where(hasattr(os, "memfd_create"), "pages are mapped on Linux")
    pages = filled()
    own = [rows_of(pages, slot) for slot in range(SLOTS)]
    pages.map(1, 2, [3, 4, 23, 1])  # blocks 3, 4 and 1 of slot 0, and the last one of slot 2
    expected = [*own[1][:16], *own[0][24:40], *own[2][56:64], *own[0][8:16], *own[1][48:]]
    assert rows_of(pages, 1) == expected
    pages.arrays[0][0, :, 4, :, 3], pages.arrays[1][0, :, 35] = 7, 7
    assert rows_of(pages, 1)[16:32] == [*own[0][24:35], 7, *own[0][36:40]]
    assert rows_of(pages, 2) == own[2]
    pages.map(1, 0, list(range(8, 16)))
    assert rows_of(pages, 1) == own[1]  # its own rows were kept where they are
    pages.map(0, 5, [24])
    assert rows_of(pages, 0)[40:48] == [0] * 8  # nobody wrote it


@pytest.mark.parametrize("at_once", [False, True])
def test_rows_are_copied_from_slot_to_slot(at_once: bool) -> None:
    pages = filled()
    own = [rows_of(pages, slot) for slot in range(SLOTS)]
    if at_once:
        pages.copy(0, 2, 11, 21)
    else:
        pages.write(2, 11, pages.read(0, 11, 21))
    found = rows_of_values(pages, 2)
    assert found == [*own[2][:11], *own[0][11:21], *own[2][21:]]
    assert rows_of_keys(pages, 2) == [*own[2][:8], *own[0][8:24], *own[2][24:]]  # in whole tiles of keys
    assert rows_of(pages, 0) == own[0]


def rows_of_values(pages: CachePages, slot: int) -> list[int]:
    return [int(row) for row in pages.arrays[1][slot, 0, :, 0]]


def rows_of_keys(pages: CachePages, slot: int) -> list[int]:
    return [int(row) for row in pages.arrays[0][slot, 1, :, 0].ravel()]


def test_where_pages_do_not_fit_a_block_is_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = [(SLOTS, HEADS, CONTEXT // LANES, 3, LANES), (SLOTS, HEADS, CONTEXT, 3)]
    assert CachePages(narrow, "float32", CONTEXT).block_rows == CONTEXT
    monkeypatch.setattr(cache_pages, "_MOST_MAPPINGS", 2 * 2 * SLOTS * HEADS)
    assert CachePages(SHAPES, "float32", CONTEXT).block_rows in (32, CONTEXT)  # two for each slot, head and cache
    monkeypatch.setattr(cache_pages.sys, "platform", "another")
    pages = filled()
    assert (pages.block_rows, pages.blocks) == (CONTEXT, SLOTS)
    assert all(array.ctypes.data % 64 == 0 for array in pages.arrays)
    assert rows_of(pages, 1) == [100 + row for row in range(CONTEXT)]


def test_where_the_system_maps_no_more_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text may go on with a block of which it has a part."""
    only_where(hasattr(os, "memfd_create"), "pages are mapped on Linux")
    pages = filled()
    monkeypatch.setattr(pages, "_system", SimpleNamespace(mmap=lambda *arguments: -1))
    with pytest.raises(RowsLost, match="rows of the KV cache cannot be mapped"):
        pages.map(1, 0, [3])
    assert not issubclass(RowsLost, Exception)  # which ends one request alone


def test_memory_and_files_are_given_back() -> None:
    only_where(hasattr(os, "memfd_create"), "pages are mapped on Linux")

    def mappings() -> int:
        with open("/proc/self/maps") as maps:
            return sum("hetero_sd caches" in line for line in maps)

    before = len(os.listdir("/proc/self/fd")), mappings()
    pages = filled()
    pages.map(0, 0, [9, 3, 17])
    view = pages.arrays[1][1]
    assert mappings() > before[1]
    del pages
    assert int(view[0, 5, 0]) == 105  # the memory is there as long as an array is
    del view
    assert (len(os.listdir("/proc/self/fd")), mappings()) == before
