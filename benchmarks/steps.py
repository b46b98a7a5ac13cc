"""What benchmarks/decode.py times, and how."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

WIDTHS = (1, 4, 8)
CONTEXT = 640
PAST = 128
PROMPTS = (128, 512)
# name -> (tokens, past)
ROWS = {**{str(n): (n, PAST) for n in WIDTHS}, **{f"prompt {n}": (n, 0) for n in PROMPTS}}
STEPS = 5
Clock = Callable[[], float]


def clock_of(threads: int) -> Clock:
    """Processor time of one thread: on a machine that others use, a step is longer than what the scheduler gives."""
    return time.process_time if threads == 1 else time.perf_counter


def samples(clock: Clock, step: Callable[[], Any], rewind: Callable[[], Any] = lambda: None) -> list[float]:
    """Seconds of a few runs of one step, after one that is not counted; `rewind` follows each and is not timed."""
    step(), rewind()
    times = []
    for _ in range(STEPS):
        start = clock()
        step()
        times.append(clock() - start)
        rewind()
    return times
