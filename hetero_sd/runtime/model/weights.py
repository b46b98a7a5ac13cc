"""Weight files: streamed to disk one tensor at a time on the host, memory-mapped on the device.

The format is safetensors (see safetensors_header.py); both directions need nothing but numpy.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from costmodel.schema.model import WeightSlice
from hetero_sd.runtime.model.safetensors_header import ALIGNMENT_BYTES, PAD_PREFIX, Entry, lay_out, read_header
from targets.errors import UserError
from targets.files import replacing

Array = npt.NDArray[Any]
Tensor = tuple[str, str, tuple[int, ...], Callable[[], "Array | Iterable[Array]"]]

_HUGE_PAGE_BYTES = 2 << 20
_READ_BYTES = 16 << 20
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # in Python's mmap from 3.11 on


def write_weights(path: Path, tensors: Iterable[Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in the given order, holding one tensor in memory at a time.

    Args:
        path: replaced only when everything is written.
        tensors: (name, dtype, shape, make); ``make()`` is called in order, once, and returns the tensor, or an
            iterable of arrays whose bytes in a row are the tensor. bfloat16 is given as uint16.
        metadata: text kept in the header.

    Raises:
        ValueError: a made tensor does not have the declared dtype or size, or a name or dtype cannot be stored.
    """
    tensors = list(tensors)
    head, entries = lay_out([(name, dtype, shape) for name, dtype, shape, _ in tensors], metadata or {})
    make = {name: maker for name, _, _, maker in tensors}
    with replacing(path) as part, part.open("wb") as file:
        file.write(head)
        for entry in entries:
            if entry.name.startswith(PAD_PREFIX):
                file.write(bytes(entry.nbytes))
            else:
                _write_tensor(file, entry, make[entry.name]())


def _write_tensor(file: BinaryIO, entry: Entry, made: Array | Iterable[Array]) -> None:
    """Write the bytes of one tensor, checked against its declaration."""
    if isinstance(made, np.ndarray):
        if made.shape != entry.shape:
            raise ValueError(f"tensor {entry.name!r} has shape {made.shape}, declared {entry.shape}")
        made = [made]
    written = 0
    for piece in made:
        if piece.dtype != np.dtype(entry.view_dtype):
            raise ValueError(f"tensor {entry.name!r} is {piece.dtype}, declared {entry.dtype}")
        file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        written += piece.nbytes
    if written != entry.nbytes:
        raise ValueError(f"tensor {entry.name!r} has {written} bytes, declared {entry.nbytes}")


class Weights(Mapping[str, Array]):
    """The tensors of a safetensors file as numpy views, by name and in the order of the file.

    The views are shared and must not be written to (they are private memory, so the file is safe). They are not
    marked read-only because numpy hands no read-only array to DLPack. Tensors of files written by
    :func:`write_weights` are aligned to 64 bytes, which zero-copy import by TVM demands.
    """

    def __init__(self, path: Path, huge_pages: bool = False) -> None:
        """Map ``path``, or copy it into anonymous memory with huge pages.

        Args:
            path: a safetensors file; its header is checked before anything is mapped or allocated.
            huge_pages: pays the file's size in memory for fewer TLB misses; where the kernel has no transparent
                huge pages it is an ordinary copy.

        Raises:
            UserError: the file cannot be read or is not well-formed.
        """
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                entries, self.metadata = read_header(file, size, str(path))
                memory = _copy(file, size) if huge_pages else _map(file, size)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        self._entries = {entry.name: entry for entry in entries}
        self._memory = memory
        self._imported: dict[tuple[str, str | WeightSlice], Any] = {}

    def __getitem__(self, name: str) -> Array:
        """Return the tensor; bfloat16 as uint16."""
        entry = self._entries[name]
        raw = self._memory[entry.offset : entry.offset + entry.nbytes]
        return raw.view(entry.view_dtype).reshape(entry.shape)

    def part(self, use: str | WeightSlice) -> Array:
        """Return a tensor, or a slice of it: where the file is mapped as far as its place allows, else a copy."""
        if isinstance(use, str):
            return self[use]
        part = self[use.name][(slice(None),) * use.axis + (slice(use.start, use.end),)]
        if part.flags.c_contiguous and part.ctypes.data % ALIGNMENT_BYTES == 0:
            return part
        memory = np.empty(part.nbytes + ALIGNMENT_BYTES, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT_BYTES
        copy = memory[start : start + part.nbytes].view(part.dtype).reshape(part.shape)
        copy[...] = part
        return copy

    def on_processor(self, processor: str, use: str | WeightSlice, imported: Callable[[str | WeightSlice], Any]) -> Any:
        """What ``imported`` made of a tensor for a processor: once for all models that read these weights."""
        key = processor, use
        if key not in self._imported:
            self._imported[key] = imported(use)
        return self._imported[key]

    def leave(self, processor: str) -> None:
        """Forget what was made for a processor that is used no longer."""
        self._imported = {key: made for key, made in self._imported.items() if key[0] != processor}

    def __iter__(self) -> Iterator[str]:
        """Names in the order of the file."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._entries)

    def entry(self, name: str) -> Entry:
        """Return what the header says of a tensor."""
        return self._entries[name]

    def dtype(self, name: str) -> str:
        """Return the stored dtype, where "bfloat16" is told from "uint16"."""
        return self._entries[name].dtype


def _map(file: BinaryIO, size: int) -> npt.NDArray[np.uint8]:
    """Map the file copy-on-write, reserving no swap: the weights may be larger than the memory."""
    mapped = mmap.mmap(
        file.fileno(), size, flags=mmap.MAP_PRIVATE | _MAP_NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
    )
    return np.frombuffer(mapped, np.uint8)


def _copy(file: BinaryIO, size: int) -> npt.NDArray[np.uint8]:
    """Copy the file to the start of a huge page, so that offsets keep their alignment."""
    memory = mmap.mmap(-1, size + _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            pass  # a kernel without transparent huge pages
    whole = np.frombuffer(memory, np.uint8)
    start = -whole.ctypes.data % _HUGE_PAGE_BYTES
    data = whole[start : start + size]
    file.seek(0)
    done = 0
    while done < size:
        count = file.readinto(data[done : done + _READ_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise OSError(0, "the file became shorter while it was read")
        done += count
    return data
