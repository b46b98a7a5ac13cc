"""Rows of numbers in a file without a name: those of a large vocabulary need more memory than the model they are of."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]


@dataclass(frozen=True)
class StoredRows:
    """Rows of a RowsFile, which are read when they are asked for; a slice of them is an array.

    Attributes:
        file: that they are in.
        offset: where they begin, in bytes.
        shape: their number, and the numbers of each.
    """

    file: BinaryIO
    offset: int
    shape: tuple[int, int]

    def __len__(self) -> int:
        """Number of rows."""
        return self.shape[0]

    def __getitem__(self, part: slice) -> Rows:
        """Some rows that follow each other."""
        start, stop, step = part.indices(len(self))
        assert step == 1, "rows are read in their order"
        found = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        self.file.seek(self.offset + start * self.shape[1] * found.itemsize)
        read = self.file.readinto(found.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
        assert read == found.nbytes, f"{read} bytes of {found.nbytes}"
        return found


class RowsFile:
    """A file that is gone when nothing reads it any more."""

    def __init__(self, folder: Path) -> None:
        """Make it in `folder`."""
        self._file: BinaryIO = tempfile.TemporaryFile(dir=folder)

    def add(self, parts: Iterable[Rows]) -> StoredRows:
        """Keep rows, one part after the other; there is at least one."""
        start, rows, width = self._file.seek(0, 2), 0, 0
        for part in parts:
            self._file.write(np.ascontiguousarray(part, np.float32).reshape(-1).view(np.uint8).data)
            rows, width = rows + len(part), part.shape[1]
        return StoredRows(self._file, start, (rows, width))
