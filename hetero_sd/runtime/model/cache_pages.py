"""The KV caches of a model with slots, in blocks of rows that several slots can have in common.

A slot's rows stay where the kernels expect them, one after the other; which memory is there the page table says. All
caches lie in one file in memory, and a block is a part of it for every cache and KV head: sharing a block maps its
pages into another slot, so that kernels know nothing of it, and a shared row lies in the processor's caches once.
Where pages cannot do that (another system, rows that do not fill pages) a block is a whole slot, and rows are copied.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hetero_sd.runtime.model.protocol import SlotCache

_MOST_MAPPINGS = 32_000  # half of what Linux allows a process
_FIXED = 0x10  # MAP_FIXED of Linux, on all its processors but those that nobody compiles for
_SPARE = 2  # the file has place for so many times the slots' rows; what nobody wrote takes no memory


class RowsLost(BaseException):
    """A part of a block was mapped and the rest was not: no text of any slot may go on, so that nobody catches this."""


class CachePages(SlotCache):
    """Implements the SlotCache protocol."""

    def __init__(self, shapes: Sequence[Sequence[int]], dtype: str, context: int) -> None:
        """Reserve memory, of which nothing is touched.

        Args:
            shapes: of the caches, [slots, kv_heads, a part of the context, ...].
            dtype: of all of them, in numpy's words.
            context: rows of a slot.
        """
        self.slots, self.context = shapes[0][0], context
        self._heads = [shape[1] for shape in shapes]
        self._extents = [math.prod(shape[2:]) * np.dtype(dtype).itemsize for shape in shapes]  # of a slot and head
        self.block_rows = _block_rows(shapes, self._extents, context)
        sizes = [math.prod(shape) * np.dtype(dtype).itemsize for shape in shapes]
        if self.block_rows == context:
            self.arrays = [aligned(shape, dtype) for shape in shapes]
            self.blocks = self.slots
            return
        self.blocks = _SPARE * self.slots * (context // self.block_rows)
        self._base = [0, *np.cumsum([_SPARE * size for size in sizes]).tolist()]
        self._file = os.memfd_create("hetero_sd caches")
        os.ftruncate(self._file, self._base[-1])
        self.arrays = []
        for shape, size, base in zip(shapes, sizes, self._base, strict=False):
            region = mmap.mmap(self._file, size, offset=base)
            self.arrays.append(np.frombuffer(region, dtype).reshape(shape))
        self._system = ctypes.CDLL(None, use_errno=True)
        self._system.mmap.restype = ctypes.c_void_p
        long = ctypes.c_long
        self._system.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, long]

    def __del__(self) -> None:
        """Close the file; its memory ends with the last array."""
        if hasattr(self, "_file"):
            os.close(self._file)

    def map(self, slot: int, first: int, blocks: Sequence[int]) -> None:
        """See :meth:`hetero_sd.runtime.model.protocol.SlotCache.map`."""
        begin = 0
        ends = [i for i, (a, b) in enumerate(pairwise(blocks), 1) if b != a + 1 or b % self.blocks_of_slot == 0]
        for end in [*ends, len(blocks)]:
            self._map(slot, first + begin, blocks[begin], end - begin)
            begin = end

    def _map(self, slot: int, first: int, block: int, count: int) -> None:
        """Blocks that follow each other in the file."""
        home, index = divmod(block, self.blocks_of_slot)
        for array, heads, extent, base in zip(self.arrays, self._heads, self._extents, self._base, strict=False):
            size = extent // self.blocks_of_slot
            for head in range(heads):
                place = array.ctypes.data + (slot * heads + head) * extent + first * size
                offset = base + (home * heads + head) * extent + index * size
                flags, protection = mmap.MAP_SHARED | _FIXED, mmap.PROT_READ | mmap.PROT_WRITE
                if self._system.mmap(place, count * size, protection, flags, self._file, offset) != place:
                    raise RowsLost(f"rows of the KV cache cannot be mapped: {os.strerror(ctypes.get_errno())}")

    def read(self, slot: int, begin: int, end: int) -> list[npt.NDArray[Any]]:
        """See :meth:`hetero_sd.runtime.model.protocol.SlotCache.read`."""
        return [array[slot][:, part].copy() for array, part in self._parts(begin, end)]

    def write(self, slot: int, begin: int, rows: Sequence[npt.NDArray[Any]]) -> None:
        """See :meth:`hetero_sd.runtime.model.protocol.SlotCache.write`."""
        for (array, part), found in zip(self._parts(begin, begin + 1), rows, strict=True):
            array[slot][:, part.start : part.start + found.shape[1]] = found

    def copy(self, source: int, slot: int, begin: int, end: int) -> None:
        """See :meth:`hetero_sd.runtime.model.protocol.SlotCache.copy`."""
        for array, part in self._parts(begin, end):
            array[slot, :, part] = array[source, :, part]

    def _parts(self, begin: int, end: int) -> list[tuple[npt.NDArray[Any], slice]]:
        """Of each cache the part that has some rows, and perhaps rows beyond them."""
        rows = [self.context // array.shape[2] for array in self.arrays]
        return [(a, slice(begin // n, -(-end // n))) for a, n in zip(self.arrays, rows, strict=True)]


def aligned(shape: Sequence[int], dtype: str) -> npt.NDArray[Any]:
    """An array in memory that is aligned for the kernels, and not touched."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def _block_rows(shapes: Sequence[Sequence[int]], extents: Sequence[int], context: int) -> int:
    """The fewest rows that fill pages in every cache, in so many blocks as a process may map; else the context."""
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        return context
    places = sum(shape[0] * shape[1] for shape in shapes)
    for blocks in (n for n in range(context, 1, -1) if context % n == 0):
        fills = all(extent % (blocks * mmap.PAGESIZE) == 0 for extent in extents)
        whole = all(shape[2] % blocks == 0 for shape in shapes)
        if fills and whole and places * blocks <= _most_mappings():
            return context // blocks
    return context


def _most_mappings() -> int:
    try:
        return min(_MOST_MAPPINGS, int(Path("/proc/sys/vm/max_map_count").read_text()) // 2)
    except (OSError, ValueError):
        return _MOST_MAPPINGS
