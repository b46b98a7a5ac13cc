"""The OpenCL runtime: a library that gives the stock TVM wheel the device ``opencl``.

``src`` is its C++17 source. It is compiled with Zig against the headers inside the installed TVM wheel, opens libOpenCL
when it is first used, and needs nothing newer than glibc 2.28 and GCC 8's libstdc++. TVM loads it through the entry
point ``tvm.backends`` (:func:`autoload`) where a built library lies ready; :func:`ensure` builds one where there is
none. On a TVM with an OpenCL runtime of its own, ours stands aside.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from importlib import metadata
from pathlib import Path

from targets import files
from targets.errors import UserError
from targets.files import make_library_folder, not_private
from targets.opencl.runtime.library import LIBRARY, SOURCES, machine

__all__ = ["LIBRARY", "SOURCES", "OpenCLError", "machine"]
_LOADED = "hetero_sd.opencl.devices"  # a function that only our runtime registers


class OpenCLError(RuntimeError):
    """An OpenCL call failed, or the device cannot serve a request; the message names call, status and kernel."""


def build_key(target: str) -> str:
    """Return what a library is good for: ``target``, and a hash of its sources and of TVM's version and its ffi's."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    for package in ("apache-tvm", "apache-tvm-ffi"):
        digest.update(f"{package} {_version(package)}\n".encode())
    return f"{target}-{digest.hexdigest()[:16]}"


def cache_folder() -> Path:
    """Return where built libraries are kept."""
    return files.cache_folder("opencl_runtime")


def find(target: str | None = None) -> Path | None:
    """Return a library that lies ready for ``target`` (this machine by default) and the installed TVM, or None.

    $HSD_OPENCL_RUNTIME names one for this machine; else one shipped in ``lib/TARGET`` here, else one built earlier, in
    a folder that others cannot write.
    """
    stated = os.environ.get("HSD_OPENCL_RUNTIME", "")
    if stated and target in (None, machine()):
        return Path(stated)
    target = target or machine()
    shipped = SOURCES.parent / "lib" / target
    folders = [shipped]
    if SOURCES.is_dir():  # a bundle carries the library alone
        folders.append(cache_folder() / build_key(target))
    for folder in folders:
        if (folder / LIBRARY).is_file() and (folder == shipped or not_private(folder) is None):
            return folder / LIBRARY
    return None


def build(out_dir: Path, target: str | None = None) -> Path:
    """Compile the runtime into ``out_dir`` and return the library; see :func:`.building.build`."""
    from targets.opencl.runtime.building import build as build_library

    return build_library(out_dir, target or machine())


def ensure(target: str | None = None) -> Path:
    """Return a library for ``target``; build it into the cache folder, once (a few minutes), if there is none.

    Args:
        target: ``x86-64`` or ``aarch64``; None is this machine.

    Raises:
        UserError: there is none and it cannot be built here; one line says why.
    """
    library = find(target)
    if library is None and not SOURCES.is_dir():
        raise UserError(f"there is no OpenCL runtime for {target or machine()} in {SOURCES.parent / 'lib'}")
    if library is not None:
        return library
    folder = cache_folder() / build_key(target or machine())
    make_library_folder(folder)
    return build(folder, target=target)


def load(library: Path | None = None) -> str:
    """Load the runtime into this process, after TVM; a second call does nothing.

    Args:
        library: the one to load; None takes :func:`ensure`'s.

    Returns:
        ``"ours"``, or ``"tvm"`` where TVM has an OpenCL runtime of its own, which is then used as it is.

    Raises:
        UserError: there is no library, or the system cannot load it.
    """
    import tvm  # noqa: F401  (its libraries hold the symbols that ours is linked against, and it may load one itself)
    import tvm_ffi

    if tvm_ffi.get_global_func(_LOADED, allow_missing=True) is not None:
        return "ours"
    if tvm_ffi.get_global_func("device_api.opencl", allow_missing=True) is not None:
        return "tvm"
    if library is None:
        library = ensure()
    tvm_ffi.error.register_error("OpenCLError", OpenCLError)
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise UserError(f"cannot load the OpenCL runtime {library}: {error}") from None
    return "ours"


def autoload() -> None:
    """Load a library that lies ready; called by ``import tvm``, so it never compiles and never raises."""
    try:
        library = find()
        if library is not None:
            load(library)
    except Exception:
        return  # `load` says why when the runtime is wanted


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
