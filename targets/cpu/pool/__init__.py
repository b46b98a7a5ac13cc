"""The thread pool and the workspace allocator that lie under TVM's kernels: a C library, one for each instruction set.

``src`` is its C11 source; ``pool.h`` says what it does. It is compiled by the Zig compiler that links kernels, once for
each instruction set, into the user's cache folder, and copied into bundles. ``hetero_sd/runtime/model/thread_pool.py``
loads it on the device.
"""

from __future__ import annotations

from pathlib import Path

from targets import files
from targets.cpu.pool.building import build, build_key
from targets.files import make_library_folder

SOURCES = Path(__file__).resolve().parent / "src"
LIBRARY = "thread_pool.so"


def cache_folder() -> Path:
    """Return where built libraries are kept."""
    return files.cache_folder("thread_pool")


def ensure(isa: str) -> Path:
    """Return the library for ``x86-64`` or ``aarch64``; it is built once (seconds), and again when its sources change.

    Raises:
        UserError: no compiler, or a folder that cannot be written, or one that others can write.
    """
    library = cache_folder() / build_key(isa, SOURCES) / LIBRARY
    make_library_folder(library.parent)
    return library if library.is_file() else build(isa, SOURCES, library)
