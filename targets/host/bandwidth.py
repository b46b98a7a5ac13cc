"""Sustained DRAM reads of this machine, measured with numpy: one thread, and several together.

The largest element of an int32 array: numpy reads it with vector instructions and releases the lock of the
interpreter, so threads run side by side. On the development machine (Zen 3, two virtual cores) it read no slower than
a loop in C with AVX2, where the sum of the same array reached 80 % of it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

import numpy as np

_SMALLEST_BYTES = 256 << 20  # well above the caches of small machines
_LARGEST_BYTES = 1 << 30  # filling it costs about half a second
_REPEATS = 5


def measure_read_bandwidth(threads: int, last_cache_bytes: int, available_bytes: int) -> tuple[float, float]:
    """GB/s read by one thread, and by ``threads`` threads together; the best of several runs. Takes about a second.

    Where other work slowed the one thread down, it has its share of what all read: one of them read at least that.

    Args:
        threads: threads of the second measurement.
        last_cache_bytes: the last-level cache; the buffer is eight times that, so that little of it stays there.
        available_bytes: free memory; at most a quarter of it is used.
    """
    size = min(max(8 * last_cache_bytes, _SMALLEST_BYTES), _LARGEST_BYTES, available_bytes // 4)
    one, every = _best_rate(1, size), _best_rate(threads, size)
    return max(one, every / threads), max(one, every)


def _best_rate(threads: int, size_bytes: int) -> float:
    reader = BandwidthReader(threads, size_bytes=size_bytes)
    return max(reader() for _ in range(_REPEATS))


class BandwidthReader:
    """GB/s at which some threads read a large array together; they exist and wait before the clock starts."""

    def __init__(self, threads: int, cpus: Sequence[int] = (), size_bytes: int = 0) -> None:
        """Fill the array, so that its pages exist; `cpus` pins each thread to a CPU of its own; 0 bytes: 256 MiB."""
        self._parts = np.array_split(np.ones((size_bytes or _SMALLEST_BYTES) // 4, np.int32), threads)
        self._cpus = list(cpus) or None

    def __call__(self) -> float:
        """Read it once."""
        return self._read(None)

    def until(self, stop: threading.Event) -> float:
        """Read it again and again until `stop` is set; GB/s of all of it."""
        return self._read(stop)

    def _read(self, stop: threading.Event | None) -> float:
        gate = threading.Barrier(len(self._parts) + 1)
        counts = [0] * len(self._parts)

        def read(index: int) -> None:
            if self._cpus is not None:
                os.sched_setaffinity(0, {self._cpus[index]})
            gate.wait()
            while True:
                self._parts[index].max()
                counts[index] += 1
                if stop is None or stop.is_set():
                    break
            gate.wait()

        workers = [threading.Thread(target=read, args=(i,)) for i in range(len(self._parts))]
        for worker in workers:
            worker.start()
        gate.wait()
        start = time.perf_counter()
        gate.wait()
        elapsed = time.perf_counter() - start
        for worker in workers:
            worker.join()
        return sum(n * part.nbytes for n, part in zip(counts, self._parts, strict=True)) / elapsed / 1e9
