"""What OpenCL this machine has, asked with the standard library alone: it works where TVM or our runtime does not.

The numbers are constants of the Khronos OpenCL 1.2 specification.
"""

from __future__ import annotations

import ctypes
import json
import os
from ctypes import byref, c_char, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import asdict, dataclass, field
from typing import Any

from hetero_sd.runtime.doctor.subprocess_call import ask_apart

LIBRARIES = ("libOpenCL.so.1", "libOpenCL.so", "libmali.so.1")
NO_PLATFORM = -1001  # CL_PLATFORM_NOT_FOUND_KHR, the loader's answer where no driver is registered

_PLATFORM_NAME, _PLATFORM_VERSION = 0x0902, 0x0901
_ALL_DEVICES = 0xFFFFFFFF
_KINDS = {1 << 2: "gpu", 1 << 3: "accelerator", 1 << 1: "cpu"}


@dataclass(frozen=True)
class OpenCLDevice:
    """A device's facts; sizes in bytes.

    Attributes:
        kind: ``gpu``, ``accelerator`` or ``cpu``.
        unified_memory: host and device use the same memory.
        max_alloc_bytes: the largest buffer.
    """

    platform: str
    name: str
    version: str
    driver: str
    kind: str
    extensions: tuple[str, ...]
    unified_memory: bool
    max_alloc_bytes: int
    global_bytes: int
    local_bytes: int
    max_work_group: int
    compute_units: int

    @property
    def features(self) -> dict[str, bool]:
        """What kernels may use beyond OpenCL 1.2."""
        has = set(self.extensions).__contains__
        return {
            "fp16": has("cl_khr_fp16"),
            "integer dot product": has("cl_khr_integer_dot_product") or has("cl_arm_integer_dot_product_int8"),
            "sub-groups": has("cl_khr_subgroups") or has("cl_intel_subgroups"),
            "unified memory": self.unified_memory,
        }


@dataclass(frozen=True)
class OpenCLState:
    """What was found.

    Attributes:
        library: the OpenCL library that opened, or None.
        tried: each library that did not open, with the reason.
        status: the loader's answer to the question for platforms, 0 if it has any.
        platforms: (name, version, number of devices) of each.
        crash: how the driver ended the process that asked it, "" if it did not.
    """

    library: str | None
    tried: dict[str, str]
    status: int = 0
    platforms: tuple[tuple[str, str, int], ...] = ()
    devices: tuple[OpenCLDevice, ...] = field(default=())
    crash: str = ""


def probe_apart(stated: str | None = None, timeout_s: float = 60.0) -> OpenCLState:
    """Like :func:`probe`, in a process of its own: a driver that crashes or hangs is reported instead of followed."""
    lines, end = ask_apart(print_probe, [stated or ""], timeout_s, {})
    if end or not lines:
        return OpenCLState(None, {}, crash=end or "ended the process with code 0")
    found = json.loads(lines[-1])  # a driver may have printed before
    devices = tuple(OpenCLDevice(**{**d, "extensions": tuple(d["extensions"])}) for d in found["devices"])
    platforms = tuple((name, version, count) for name, version, count in found["platforms"])
    return OpenCLState(found["library"], found["tried"], found["status"], platforms, devices)


def print_probe(stated: str) -> None:
    """Print what :func:`probe` finds as one JSON line; the child's side of :func:`probe_apart`."""
    print(json.dumps(asdict(probe(stated or None))), flush=True)
    os._exit(0)  # a driver that crashes when it is unloaded has answered


def probe(stated: str | None = None) -> OpenCLState:
    """Open ``stated``, else $HSD_OPENCL_LIB, else each of `LIBRARIES`, and ask it for its devices."""
    one = stated or os.environ.get("HSD_OPENCL_LIB")
    tried: dict[str, str] = {}
    for name in (one,) if one else LIBRARIES:
        try:
            library = ctypes.CDLL(name)
            library.clGetPlatformIDs  # noqa: B018  (AttributeError where it is another library)
        except (OSError, AttributeError) as error:
            tried[name] = str(error)
            continue
        return _ask(library, name, tried)
    return OpenCLState(None, tried)


def _ask(library: ctypes.CDLL, name: str, tried: dict[str, str]) -> OpenCLState:
    count = c_uint32()
    status = int(library.clGetPlatformIDs(0, None, byref(count)))
    if status != 0 or count.value == 0:
        return OpenCLState(name, tried, status or NO_PLATFORM)
    ids = (c_void_p * count.value)()
    library.clGetPlatformIDs(count, ids, None)
    platforms, devices = [], []
    for platform in ids:
        title = _text(library.clGetPlatformInfo, platform, _PLATFORM_NAME)
        found = c_uint32()
        if library.clGetDeviceIDs(c_void_p(platform), c_uint64(_ALL_DEVICES), 0, None, byref(found)) != 0:
            found.value = 0
        handles = (c_void_p * found.value)()
        if found.value:
            library.clGetDeviceIDs(c_void_p(platform), c_uint64(_ALL_DEVICES), found, handles, None)
        platforms.append((title, _text(library.clGetPlatformInfo, platform, _PLATFORM_VERSION), found.value))
        devices += [_device(library, title, handle) for handle in handles]
    order = list(_KINDS.values())
    devices.sort(key=lambda device: order.index(device.kind))
    return OpenCLState(name, tried, 0, tuple(platforms), tuple(devices))


def _device(library: ctypes.CDLL, platform: str, handle: int | None) -> OpenCLDevice:
    ask = library.clGetDeviceInfo

    def number(what: int, kind: Any) -> int:
        value = kind()
        ask(c_void_p(handle), c_uint32(what), c_size_t(ctypes.sizeof(value)), byref(value), None)
        return int(value.value)

    bits = number(0x1000, c_uint64)
    return OpenCLDevice(
        platform=platform,
        name=_text(ask, handle, 0x102B),
        version=_text(ask, handle, 0x102F),
        driver=_text(ask, handle, 0x102D),
        kind=next((name for bit, name in _KINDS.items() if bits & bit), "cpu"),
        extensions=tuple(_text(ask, handle, 0x1030).split()),
        unified_memory=bool(number(0x1035, c_uint32)),
        max_alloc_bytes=number(0x1010, c_uint64),
        global_bytes=number(0x101F, c_uint64),
        local_bytes=number(0x1023, c_uint64),
        max_work_group=number(0x1004, c_size_t),
        compute_units=number(0x1002, c_uint32),
    )


def _text(ask: Any, handle: int | None, what: int) -> str:
    size = c_size_t()
    ask.restype = c_int32
    if ask(c_void_p(handle), c_uint32(what), c_size_t(0), None, byref(size)) != 0 or size.value == 0:
        return ""
    room = (c_char * size.value)()
    ask(c_void_p(handle), c_uint32(what), size, room, None)
    return bytes(room).split(b"\0")[0].decode("utf-8", "replace").strip()
