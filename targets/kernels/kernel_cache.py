"""Compiled kernels kept in the user's cache folder: one is compiled once for its sizes, whichever model calls it.

A file holds a line of JSON (the kernel's parameters and the hash of what follows) and an object file. Its name is a
hash of all that the object depends on: maker, tile, sizes and TVM target, the sources of `targets` and TVM's version.
The folder must be the user's alone, because what lies in it is linked into bundles; another one is not used. A file
that is damaged counts as absent. Without a folder kernels are kept for this compilation only.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from targets.files import cache_folder, make_private, not_private, replacing

_TARGETS = Path(__file__).resolve().parent.parent
MOST_BYTES = 1 << 30  # of the folder; the files that were not read for longest go first
_MOST_FILE_BYTES = 1 << 25
Parameters = tuple[tuple[tuple[int, ...] | None, str], ...]  # shape, None of a number, and type of each


@dataclass(frozen=True)
class CompiledKernel:
    """An object file, and the parameters of its function: those of the maker, scratch included."""

    parameters: Parameters
    content: bytes


class KernelCache:
    """Kernels by their symbols."""

    def __init__(self, folder: Path | None) -> None:
        """Keep them in `folder` too, which is made if need be; one that is not the user's alone is left as it is."""
        self.folder = folder if folder is not None and _usable(folder) else None
        self._kernels: dict[str, CompiledKernel] = {}
        self._written = 0

    @classmethod
    def of_user(cls) -> KernelCache:
        """In hetero_sd/kernels of the user's cache folder."""
        return cls(cache_folder("kernels"))

    def get(self, symbol: str) -> CompiledKernel | None:
        """The kernel of a symbol, or None where it is to be compiled."""
        if symbol not in self._kernels and self.folder is not None:
            found = _read(self.folder / _file_name(symbol))
            if found is not None:
                self._kernels[symbol] = found
        return self._kernels.get(symbol)

    def put(self, symbol: str, kernel: CompiledKernel) -> None:
        """Keep a kernel; a folder that is full or went away is no error."""
        self._kernels[symbol] = kernel
        if self.folder is None:
            return
        header = (kernel.parameters, hashlib.sha256(kernel.content).hexdigest())
        try:
            with replacing(self.folder / _file_name(symbol), own=True) as part:
                part.write_bytes(json.dumps(header).encode() + b"\n" + kernel.content)
            self._written += 1
        except OSError:
            self.folder = None

    def remove_oldest(self) -> None:
        """After a compilation: keep the folder within MOST_BYTES."""
        if self.folder is None or not self._written:
            return
        self._written = 0
        try:
            facts = [(entry.stat(), entry.path) for entry in os.scandir(self.folder)]
            left = sum(fact.st_size for fact, _ in facts)
            for fact, path in sorted(facts, key=lambda f: f[0].st_mtime):
                if left <= MOST_BYTES:
                    return
                os.unlink(path)
                left -= fact.st_size
        except OSError:
            return  # another process removes them, too


def kernel_symbol(name: str, *facts: object) -> str:
    """The symbol of a kernel: its name, and a hash of the facts that it is made from."""
    return f"{name}_{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def _usable(folder: Path) -> bool:
    try:
        make_private(folder)
        return not_private(folder) is None
    except OSError:
        return False


def _read(path: Path) -> CompiledKernel | None:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_FILE_BYTES)
        head, _, code = content.partition(b"\n")
        stored, digest = json.loads(head)
        if hashlib.sha256(code).hexdigest() != digest:
            return None
        os.utime(path)  # it was of use
        parameters = ((None if shape is None else tuple(shape), str(dtype)) for shape, dtype in stored)
        return CompiledKernel(tuple(parameters), code)
    except (OSError, ValueError, TypeError):
        return None


def _file_name(symbol: str) -> str:
    return hashlib.sha256(f"{symbol}\n{_version()}".encode()).hexdigest()


@functools.cache
def _version() -> str:
    """Of all sources that a kernel may come from, and of what compiles them."""
    digest = hashlib.sha256()
    for source in sorted(_TARGETS.rglob("*.py")):
        digest.update(source.relative_to(_TARGETS).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
    for package in ("apache-tvm", "apache-tvm-ffi"):
        digest.update(f"{package} {metadata.version(package)}\n".encode())
    return digest.hexdigest()
