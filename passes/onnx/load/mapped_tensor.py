"""Tensors in files beside the model, as memory maps: one map for a file, however many tensors lie in it.

onnx_ir maps the file once for each tensor and keeps a descriptor for each, so that a model of 48 layers in int4 would
need more than the 1,024 that a process has by default.
"""

from __future__ import annotations

import functools
import mmap
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir


class MappedFile:
    """A file, mapped when its first bytes are asked for."""

    def __init__(self, path: Path):
        self.path = path

    @functools.cached_property
    def bytes(self) -> mmap.mmap:
        """All of it."""
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def part(self, offset: int, size: int) -> npt.NDArray[np.uint8]:
        """Some of its bytes; their memory is given back as soon as no array reads them."""
        found = np.frombuffer(self.bytes, np.uint8, size, offset)
        weakref.finalize(found, self.give_back, offset, size)
        return found

    def give_back(self, offset: int, size: int) -> None:
        """Give back the memory of some bytes, which are mapped again when they are read."""
        start = offset // mmap.PAGESIZE * mmap.PAGESIZE
        self.bytes.madvise(mmap.MADV_DONTNEED, start, offset + size - start)


class MappedTensor(ir.ExternalTensor):
    """A tensor in a mapped file; external_file and check_tensors allowed its place and its size."""

    _array: npt.NDArray[Any] | None
    raw: mmap.mmap | None

    def __init__(self, file: MappedFile, tensor: Any):
        """Take over name, type, shape, offset and length of an onnx_ir.ExternalTensor."""
        where = {"location": file.path.name, "base_dir": file.path.parent}
        where |= {"offset": tensor.offset, "length": tensor.length}
        super().__init__(**where, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)
        self._file = file

    def _load(self) -> None:
        if not self.size:
            self._array = np.empty(self.shape.numpy(), self.dtype.numpy())
            return
        self.raw = self._file.bytes
        part = self._file.part(self.offset or 0, self.nbytes)
        if self.dtype.bitwidth < 8:
            self._array = ir.PackedTensor(part, dtype=self.dtype, shape=self.shape).numpy()
        else:
            self._array = part.view(np.dtype(self.dtype.numpy()).newbyteorder("<")).reshape(self.shape.numpy())

    def give_back(self) -> None:
        """Give back the memory of the numbers that were read so far; arrays of them stay valid."""
        if self.raw is not None and self.size:
            self._file.give_back(self.offset or 0, self.nbytes)

    def release(self) -> None:
        """Forget the numbers, which are read again when they are asked for; the file stays mapped for other tensors."""
        self._array = self.raw = None
