"""What each group of processors reads from DRAM alone, and what two of them read at the same time."""

from __future__ import annotations

import math
import threading
import time
from itertools import combinations
from statistics import median
from typing import Any

from costmodel.schema.measured import GPU, MeasuredBandwidth
from hetero_sd.runtime.calibrate.budget import Budget
from hetero_sd.runtime.calibrate.calibrate_gpu import GpuCosts
from hetero_sd.runtime.doctor.machine import clusters
from targets.host.bandwidth import BandwidthReader

BANDWIDTH_SHARE = 0.3  # of the time to measure
_REPEATS = 5
_WINDOW_S = 0.25


def cpu_groups() -> list[tuple[int, ...]]:
    """The CPUs of each cluster that this process may use; one cluster of several CPUs counts as single CPUs."""
    groups = [c.usable for c in clusters() if c.usable]
    return [(cpu,) for cpu in groups[0]] if len(groups) == 1 else groups


def measure_bandwidths(gpu: GpuCosts | None, budget: Budget | None = None) -> list[MeasuredBandwidth]:
    """Reads of every group alone and of every pair together, all in turn, within BANDWIDTH_SHARE of a budget.

    Returns:
        One entry for each set of readers that there was time for.
    """
    budget = budget or Budget(math.inf)
    groups: list[tuple[int, ...] | str] = list(cpu_groups())
    groups += [GPU] if gpu is not None else []
    cases: list[tuple[Any, ...]] = [(g,) for g in groups] + list(combinations(groups, 2))
    found: list[list[list[float]]] = [[[] for _ in case] for case in cases]
    for _ in range(_REPEATS):
        for case, rates in zip(cases, found, strict=True):
            if not budget.allows("bandwidth", _WINDOW_S, BANDWIDTH_SHARE):
                continue
            with budget.spend("bandwidth"):
                read = _read_together(case, gpu)
            for mine, rate in zip(rates, read, strict=True):
                mine.append(rate)
    return [
        MeasuredBandwidth(case, tuple(round(median(r), 3) for r in rates))
        for case, rates in zip(cases, found, strict=True)
        if rates[0]
    ]


def cases_of(gpu: bool) -> int:
    """How many sets of readers there are: each group alone, and each pair."""
    groups = len(cpu_groups()) + gpu
    return groups + groups * (groups - 1) // 2


def _read_together(case: tuple[Any, ...], gpu: GpuCosts | None) -> list[float]:
    """GB/s of each reader while all of them read."""
    rates, stop = [0.0] * len(case), threading.Event()

    def read(index: int, reader: BandwidthReader) -> None:
        rates[index] = reader.until(stop)

    workers = [
        threading.Thread(target=read, args=(i, BandwidthReader(len(cpus), cpus)))
        for i, cpus in enumerate(case)
        if cpus != GPU
    ]
    for worker in workers:
        worker.start()
    try:
        if GPU in case:
            assert gpu is not None
            rates[case.index(GPU)] = _gpu_rate(gpu)
        else:
            time.sleep(_WINDOW_S)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    return rates


def _gpu_rate(gpu: GpuCosts) -> float:
    """The median of reads that follow each other for the length of the window."""
    rates, start = list[float](), time.monotonic()
    while not rates or time.monotonic() - start < _WINDOW_S:
        rates.append(gpu.gb_per_s())
    return median(rates)
