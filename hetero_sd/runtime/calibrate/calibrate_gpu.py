"""What a GPU costs before it computes: DRAM reads, launches, hand-overs; measured with two small OpenCL kernels.

The kernels are handed to the OpenCL runtime in the form in which TVM serialises compiled modules.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from costmodel.schema.measured import HandOver

READ_BYTES = 256 << 20
_ITEM_BYTES = 64  # one int16
_GROUP, _STEPS = 64, 64  # a group reads 256 KiB, its items side by side
_HAND_OVER_BYTES = (4 << 10, 256 << 10, 4 << 20)  # token ids, a layer's activations, a cache
_REPEATS = 50

_EMPTY = "__kernel void empty(__global int* y) {}"
_READ = f"""__kernel void read(__global const int16* x, __global int* y) {{
  x += get_group_id(0) * {_GROUP * _STEPS} + get_local_id(0);
  int16 most = x[0];
  for (int i = 1; i < {_STEPS}; ++i) most = max(most, x[i * {_GROUP}]);
  int8 a = max(most.lo, most.hi); int4 b = max(a.lo, a.hi); int2 c = max(b.lo, b.hi);
  y[get_global_id(0)] = max(c.x, c.y);
}}"""


class GpuCosts:
    """Measures one OpenCL device; its runtime is loaded already."""

    def __init__(self, device: Any, read_bytes: int = READ_BYTES) -> None:
        """Make the buffers and build the kernels."""
        import tvm

        self._device, self._bytes = device, read_bytes
        self._groups = read_bytes // (_GROUP * _STEPS * _ITEM_BYTES)
        ones = np.ones(self._groups * _GROUP * _STEPS * _ITEM_BYTES // 4, np.int32)
        self._x = tvm.runtime.tensor(ones, device)
        self._y = tvm.runtime.empty((self._groups * _GROUP,), "int32", device)
        self._read, self._empty = _kernel(_READ, 2), _kernel(_EMPTY, 1)
        self._new: Callable[[int], Any] = lambda size: tvm.runtime.empty((size // 4,), "float32", device)

    def enqueue_read(self) -> None:
        """Enqueue one read of the large buffer."""
        self._read(ctypes.c_void_p(self._x.data_ptr()), ctypes.c_void_p(self._y.data_ptr()), self._groups, _GROUP)

    def gb_per_s(self) -> float:
        """Rate of one read of the large buffer."""
        self._device.sync()
        start = time.perf_counter()
        self.enqueue_read()
        self._device.sync()
        return self._bytes / (time.perf_counter() - start) / 1e9

    def launches(self) -> tuple[float, float]:
        """Seconds of a launch from an empty queue until the host knows its end, and of one more in the queue."""
        y = ctypes.c_void_p(self._y.data_ptr())

        def many(count: int) -> None:
            for _ in range(count):
                self._empty(y, 1, _GROUP)
            self._device.sync()

        one, hundred = _median_s(lambda: many(1)), _median_s(lambda: many(101))
        return one, max(0.0, hundred - one) / 100

    def hand_overs(self) -> tuple[HandOver, ...]:
        """Seconds to give a tensor of some bytes to the host and back (shared memory), and to copy it instead."""
        from targets.opencl import interface as opencl

        found = []
        for size in _HAND_OVER_BYTES:
            tensor = self._new(size)
            opencl.host_view(tensor)
            opencl.to_device(tensor)

            def share(tensor: Any = tensor) -> None:
                opencl.to_host(tensor, "read")
                opencl.to_device(tensor)

            found.append(HandOver(size, _median_s(share), _median_s(tensor.numpy)))
        return tuple(found)


def _kernel(source: str, buffers: int) -> Any:
    """A kernel over some buffers, from TVM's serialised form of an OpenCL module; call it with groups and items."""
    import tvm_ffi

    def text(string: str) -> bytes:
        return struct.pack("<Q", len(string)) + string.encode()

    name, tags = source.split("(")[0].split()[-1], ["blockIdx.x", "threadIdx.x"]
    handle = struct.pack("<BBH", 3, 64, 1)
    info = text(name) + struct.pack("<Q", buffers) + handle * buffers + struct.pack("<Q", len(tags))
    info += b"".join(map(text, tags)) + struct.pack("<Q", buffers) + struct.pack("<i", 0) * buffers
    code = text(f"// Function: {name}\n{source}\n")
    load = tvm_ffi.get_global_func("ffi.Module.load_from_bytes.opencl")
    return load(text("cl") + struct.pack("<Q", 1) + text(name) + info + code).get_function(name)


def _median_s(action: Callable[[], object]) -> float:
    times = []
    for i in range(_REPEATS + 3):
        start = time.perf_counter()
        action()
        if i >= 3:
            times.append(time.perf_counter() - start)
    return median(times)
