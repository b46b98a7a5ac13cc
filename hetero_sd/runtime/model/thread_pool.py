"""Our thread pool under TVM's kernels; the C library of the bundle that targets/cpu/pool builds.

A pool serves one model: its libraries launch their parallel regions through it, and take their local buffers from it.
Pools on the same CPUs share their worker threads. Where the library cannot be loaded, or $HSD_THREAD_POOL is ``tvm``,
TVM's own pool is used, which waits for every thread in every region.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hetero_sd.runtime.manifest import Bundle
from targets.errors import UserError

LIBRARY = "lib/thread_pool.so"  # in a bundle
_ABI = 2
_LAUNCH, _ALLOCATE, _FREE = "__TVMBackendParallelLaunch", "__TVMBackendAllocWorkspace", "__TVMBackendFreeWorkspace"
_BARRIER = "__TVMBackendParallelBarrier"
_tvms_own: dict[int, dict[str, int | None]] = {}  # by library handle: what lay there before


def why_tvms_pool(bundle: Bundle) -> str | None:
    """Why TVM's pool is used for this bundle, in a few words; None where ours is.

    Raises:
        UserError: $HSD_THREAD_POOL is neither empty nor "tvm", or the library is not the one of the manifest.
    """
    wanted = os.environ.get("HSD_THREAD_POOL", "")
    if wanted not in ("", "tvm"):
        raise UserError(f"HSD_THREAD_POOL={wanted}: say tvm for TVM's thread pool, or nothing for ours")
    if wanted:
        return "HSD_THREAD_POOL=tvm"
    if LIBRARY not in bundle:
        return f"the bundle has no {LIBRARY}"
    try:
        with bundle.opened(LIBRARY) as opened:
            _load(opened)
    except PoolError as error:
        return str(error)
    return None


class PoolError(Exception):
    """The pool cannot be used; the message is one line."""


class _Counts(ctypes.Structure):
    names = ("regions", "tasks", "worker_tasks", "late", "inline_busy")
    _fields_ = [(name, ctypes.c_uint64) for name in names]


class _Errors(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("move", "raise_", "release", "raise_text")]


class ThreadPool:
    """Threads for the kernels of one model."""

    def __init__(self, path: Path | str, cpus: Sequence[int], threads: int, capacity: int | None = None) -> None:
        """Start the threads.

        Args:
            path: the library, its hash verified.
            cpus: where they run; empty for wherever the calling thread may.
            threads: of a parallel region, the calling thread included.
            capacity: the most that :meth:`set` will be asked for; None is ``threads``.

        Raises:
            PoolError: the library does not load or is of another version, or the system gives no threads.
        """
        self._library = _load(path)
        self.threads, self.capacity = threads, capacity or threads
        row = (ctypes.c_int32 * max(1, len(cpus)))(*sorted(set(cpus)))
        self._lane = self._library.hsd_pool_open(row, len(set(cpus)), threads, self.capacity)
        if self._lane < 0:
            raise PoolError(f"{path}: no pool of {self.capacity} threads: {os.strerror(-self._lane)}")
        self._attached: list[ctypes.CDLL] = []
        self._finalizer = weakref.finalize(self, _close, self._library, self._lane, self._attached)

    def attach(self, library: Path, shared: bool = False) -> None:
        """Put the pool under a library that TVM has loaded; the last pool attached to a library serves it.

        A `shared` library serves several models: each of its regions goes to the pool that its thread used last.

        Raises:
            PoolError: it is not loaded, has no parallel regions of TVM's kind, or uses TVM's barrier.
        """
        try:
            loaded = ctypes.CDLL(str(library), mode=os.RTLD_LAZY | os.RTLD_NOLOAD)
        except OSError:
            raise PoolError(f"{library} is not loaded") from None
        if _pointer(loaded, _BARRIER) is not None:
            raise PoolError(f"{library} uses TVM's barrier, which tasks that are claimed one by one cannot serve")
        ours = {
            _LAUNCH: self._library.hsd_pool_launch_of_thread() if shared else self._library.hsd_pool_launch(self._lane),
            _ALLOCATE: ctypes.cast(self._library.hsd_alloc_workspace, ctypes.c_void_p).value,
            _FREE: ctypes.cast(self._library.hsd_free_workspace, ctypes.c_void_p).value,
        }
        places = {name: place for name in ours if (place := _pointer(loaded, name)) is not None}
        before = {name: place.value for name, place in places.items()}
        _tvms_own.setdefault(loaded._handle, before)
        for name, place in places.items():
            place.value = ours[name]
        self._attached.append(loaded)

    def use(self) -> None:
        """Let regions that this thread launches from shared libraries go to this pool."""
        self._library.hsd_pool_use(self._lane)

    def set(self, threads: int, tasks_per_thread: int = 0) -> None:
        """Choose the threads of the regions that follow, and how many tasks each has on average; starts no thread.

        Args:
            threads: 1 to the capacity.
            tasks_per_thread: 1 costs least; more leave less to wait for where a thread is delayed or slower. 0 takes 1
                while regions end together, and 4 after regions that did not.
        """
        if failed := self._library.hsd_pool_set(self._lane, threads, tasks_per_thread):
            raise ValueError(f"{threads} threads of {self.capacity}, {tasks_per_thread} tasks: {os.strerror(-failed)}")
        self.threads = threads

    def counts(self) -> dict[str, int]:
        """What the regions did so far: ``regions``, their ``tasks``, ``worker_tasks``, ``late``, ``inline_busy``."""
        counts = _Counts()
        self._library.hsd_pool_counts(self._lane, ctypes.byref(counts))
        return {name: int(getattr(counts, name)) for name in _Counts.names}

    def region_cost_s(self, rounds: int = 301, work_s: float = 20e-6, quantile: float = 0.5) -> float:
        """Seconds that a parallel region adds to its work, measured.

        Args:
            rounds: regions of one task a thread.
            work_s: what each task takes; where a worker is late, its task's time is part of the cost.
            quantile: which of the regions; 0.5 is the median.
        """
        cost: float = self._library.hsd_pool_region_cost(self._lane, rounds, int(work_s * 1e9), quantile)
        return max(0.0, cost)

    def close(self) -> None:
        """Give the libraries back to TVM's pool and end the threads; a second call does nothing."""
        self._finalizer()


def _close(library: Any, lane: int, attached: list[ctypes.CDLL]) -> None:
    launch = library.hsd_pool_launch(lane)
    for loaded in attached:
        place = _pointer(loaded, _LAUNCH)
        if place is not None and place.value == launch:  # else another pool came after
            for name, value in _tvms_own[loaded._handle].items():
                ctypes.c_void_p.in_dll(loaded, name).value = value
    library.hsd_pool_close(lane)


def pool_of(bundle: Bundle, cpus: Sequence[int], threads: int, capacity: int) -> ThreadPool:
    """Start the threads of the bundle's library, `capacity` in all, of which `threads` run what follows.

    Raises:
        PoolError: see :class:`ThreadPool`.
        UserError: the library is not the one of the manifest.
    """
    with bundle.opened(LIBRARY) as opened:
        return ThreadPool(opened, cpus, threads, capacity)


def _load(path: Path | str) -> Any:
    """The library, with its functions' types; TVM's functions for errors given to it."""
    try:
        library = ctypes.CDLL(str(path))
        version = library.hsd_pool_abi()
    except (OSError, AttributeError) as error:
        raise PoolError(f"{path} cannot be loaded: {error}") from None
    if version != _ABI:
        raise PoolError(f"{path} has version {version}, this runtime needs {_ABI}")
    library.hsd_pool_launch.restype = library.hsd_pool_launch_of_thread.restype = ctypes.c_void_p
    library.hsd_pool_region_cost.restype = ctypes.c_double
    library.hsd_pool_region_cost.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_int64, ctypes.c_double]
    library.hsd_pool_spin.argtypes = [ctypes.c_int64]
    library.hsd_pool_errors(ctypes.byref(_tvms_errors()))
    return library


def _tvms_errors() -> _Errors:
    """TVM's functions that hand an error from one thread to another."""
    try:
        from tvm_ffi.libinfo import find_libtvm_ffi

        ffi = ctypes.CDLL(find_libtvm_ffi())
        names = ("ErrorMoveFromRaised", "ErrorSetRaised", "ObjectDecRef", "ErrorSetRaisedFromCStr")
        return _Errors(*(ctypes.cast(getattr(ffi, f"TVMFFI{name}"), ctypes.c_void_p).value for name in names))
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise PoolError(f"TVM's library of errors cannot be reached: {error}") from None


def _pointer(library: ctypes.CDLL, name: str) -> ctypes.c_void_p | None:
    try:
        return ctypes.c_void_p.in_dll(library, name)
    except ValueError:
        return None
