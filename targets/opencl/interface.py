"""Talking to the OpenCL runtime: what TVM's own interface of a device has no place for.

Call :func:`targets.opencl.runtime.load` first. How a session works with a device ``opencl:N``:

* Calling a function of a VirtualMachine enqueues its kernels on one in-order queue per device, shared by all threads,
  and returns without waiting. :func:`flush` hands what is enqueued to the GPU; some drivers start nothing before.
* Small copies to the device (up to 256 KiB) do not wait either; copies to the host (``tensor.numpy()``) wait. One that
  fails after it was enqueued is an error of whatever waits next, of a hand-over or a mark, too, or of the next copy.
* :func:`host_view` gives the host's tensor over a device tensor: the same bytes where memory is unified, else a copy.
  A tensor has one owner at a time: after :func:`host_view` or :func:`to_host` it is the host's, after
  :func:`to_device` the device's. Kernels refuse a tensor that is with the host. A hand-over costs cache maintenance
  on unified memory, a copy elsewhere; the view and its address stay valid over any number of them.

Every failure raises :class:`targets.opencl.runtime.OpenCLError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from targets.opencl.runtime import OpenCLError


@dataclass(frozen=True)
class Command:
    """One kernel of a profile; times in nanoseconds of the device's clock."""

    name: str
    queued_ns: int
    submitted_ns: int
    started_ns: int
    ended_ns: int

    @property
    def seconds(self) -> float:
        """How long it ran."""
        return (self.ended_ns - self.started_ns) * 1e-9


@dataclass(frozen=True)
class CacheCounts:
    """What became of program binaries in this process; ``folder`` is "" where none are kept."""

    folder: str
    loaded: int
    built: int
    damaged: int
    written: int


def devices() -> list[dict[str, Any]]:
    """Return the facts of each device, GPUs first; sizes in bytes, ``clock_mhz`` in MHz.

    Raises:
        OpenCLError: there is none; the message says whether the loader, the driver or the device is missing.
    """
    found = []
    for facts in _function("devices")():
        plain = dict(facts)
        plain["max_work_items"] = list(plain["max_work_items"])
        found.append(plain)
    return found


def loader() -> str:
    """Return the name of the OpenCL library in use; raises OpenCLError where there is none."""
    return str(_function("loader")())


def flush(device: int = 0) -> None:
    """Hand everything enqueued to the device; does not wait."""
    _function("flush")(device)


class Mark:
    """A point in a device's queue: everything enqueued before it, flushed."""

    def __init__(self, device: int = 0) -> None:
        """Put a mark behind what is enqueued now."""
        self._query = _function("mark")(device)

    def reached(self) -> bool:
        """Whether all of it has finished; does not wait."""
        return bool(self._query(False))

    def wait(self) -> None:
        """Wait until all of it has finished."""
        self._query(True)


def host_view(tensor: Any) -> Any:
    """Give a device tensor to the host and return the CPU tensor over its bytes, which keeps it alive."""
    return _function("host_view")(tensor)


def import_host(array: npt.NDArray[Any], name: str, device: int = 0) -> Any:
    """Give a weight to the device: its memory shared where the driver really shares it, else copied.

    A shared array is kept alive by the tensor and must not change; kernels may only read it. Shared are arrays that
    begin at a multiple of 64 bytes, on devices that import host memory (cl_arm_import_memory_host) and on those that
    are the CPU; $HSD_OPENCL_IMPORT=0 copies everywhere.

    Args:
        array: C-contiguous; float16 becomes uint16, its bits.
        name: of the tensor, for messages.
        device: index of the OpenCL device.

    Raises:
        OpenCLError: no memory, or more bytes than one allocation may have; the message names tensor, size and limit.
    """
    import tvm
    import tvm_ffi

    if array.dtype == np.float16:
        array = array.view(np.uint16)
    share = tvm_ffi.get_global_func("hetero_sd.opencl.import_host", allow_missing=True)  # None in TVM's own runtime
    try:
        if share is not None and array.flags.c_contiguous and array.ctypes.data % 64 == 0:
            shared = share(tvm.runtime.from_dlpack(array), device)
            if shared is not None:
                return shared
        return tvm.runtime.tensor(array, tvm.opencl(device))
    except OpenCLError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("OpenCL: ")
        raise OpenCLError(f"OpenCL: tensor {name}: {reason}") from None


def to_host(tensor: Any, access: Literal["read", "write", "readwrite"] = "readwrite") -> None:
    """Give a tensor to the host, after waiting for the commands before; with "write" its old content is lost."""
    _function("to_host")(tensor, access)


def to_device(tensor: Any) -> None:
    """Give a tensor back to the device, before the commands that are enqueued after; does not wait."""
    _function("to_device")(tensor)


@contextmanager
def profile(device: int = 0) -> Iterator[list[Command]]:
    """Collect the kernels that are enqueued inside; the list is filled at the end, after waiting for them.

    Begin and end it while no other thread enqueues.
    """
    commands: list[Command] = []
    end = _function("profile")(device)
    try:
        yield commands
    finally:
        for c in end():
            times = (int(c[key]) for key in ("queued_ns", "submitted_ns", "started_ns", "ended_ns"))
            commands.append(Command(str(c["name"]), *times))


def build_kernels(module: Any, device: int = 0, before: Callable[[str], None] | None = None) -> list[tuple[str, str]]:
    """Build every OpenCL kernel of a loaded library for a device; return those that fail, with the reason.

    ``before`` is called with each kernel's name, so that a driver that crashes leaves a trace.
    """
    return [(str(name), str(reason)) for name, reason in _function("build_kernels")(module, device, before)]


def memory(device: int = 0) -> dict[str, int]:
    """Return ``buffers`` and ``bytes`` that live now, ``peak_bytes``, and the host's ``imported_bytes``."""
    return {str(key): int(value) for key, value in _function("memory")(device).items()}


def set_cache_folder(folder: Path | None) -> None:
    """Keep program binaries there; None keeps none. Without this: $HSD_OPENCL_CACHE, else the XDG cache folder."""
    _function("set_cache_folder")("" if folder is None else str(folder))


def cache_counts() -> CacheCounts:
    """Return what became of program binaries in this process."""
    counts = _function("cache")()
    return CacheCounts(str(counts["folder"]), *(int(counts[k]) for k in ("loaded", "built", "damaged", "written")))


def inject_failure(function: str, k: int, status: str, forever: bool = False) -> None:
    """Make the k-th call from now of an OpenCL function fail with a status, for tests; k = 0 stops it.

    "*" means any function but clRelease*, whose failure would leak by design.

    $HSD_OPENCL_FAULT="function:k:status[:forever]" does it from the start.
    """
    _function("inject_failure")(function, k, status, forever)


def call_count() -> int:
    """Return the number of OpenCL calls made so far."""
    return int(_function("call_count")())


def _function(name: str) -> Any:
    import tvm_ffi

    return tvm_ffi.get_global_func(f"hetero_sd.opencl.{name}")
