"""Sustained DRAM reads of this machine, measured with numpy: one thread, and a thread on each CPU.

The largest element of an int32 array: numpy reads it with vector instructions and releases the lock of the
interpreter, so threads run side by side. On the development machine (Zen 3, two virtual cores) it read no slower than
a loop in C with AVX2, where the sum of the same array reached 80 % of it.
"""

from __future__ import annotations

import threading
import time

import numpy as np

_SMALLEST_BYTES = 256 << 20  # well above the caches of small machines
_LARGEST_BYTES = 1 << 30  # filling it costs about half a second
_REPEATS = 5


def measure_read_bandwidth(threads: int, last_cache_bytes: int, available_bytes: int) -> tuple[float, float]:
    """GB/s read by one thread, and by ``threads`` threads together; the best of several runs. Takes about a second.

    Args:
        threads: threads of the second measurement.
        last_cache_bytes: the last-level cache; the buffer is eight times that, so that little of it stays there.
        available_bytes: free memory; at most a quarter of it is used.
    """
    size = min(max(8 * last_cache_bytes, _SMALLEST_BYTES), _LARGEST_BYTES, available_bytes // 4)
    buffer = np.ones(size // 4, dtype=np.int32)  # written, so that the pages exist
    one = _best_rate([buffer])
    return one, max(one, _best_rate(np.array_split(buffer, threads)))


def _best_rate(parts: list[np.ndarray]) -> float:
    """GB/s at which a thread for each part reads all parts."""
    best_s = min(_read_once(parts) for _ in range(_REPEATS))
    return sum(part.nbytes for part in parts) / best_s / 1e9


def _read_once(parts: list[np.ndarray]) -> float:
    """Seconds until all parts were read; the threads exist and wait before the clock starts."""
    gate = threading.Barrier(len(parts) + 1)

    def read(part: np.ndarray) -> None:
        gate.wait()
        part.max()
        gate.wait()

    workers = [threading.Thread(target=read, args=(part,)) for part in parts]
    for worker in workers:
        worker.start()
    gate.wait()
    start = time.perf_counter()
    gate.wait()
    elapsed = time.perf_counter() - start
    for worker in workers:
        worker.join()
    return elapsed
