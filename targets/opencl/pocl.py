"""PoCL as a stand-in for a GPU: its work on one core, the host's on another, so that neither takes the other's time."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """Linux CPU numbers; equal where the process may use one core only."""

    device: int
    host: int


def give_own_cores() -> Cores:
    """Give PoCL's only worker one core and this thread, and the threads it starts later, another.

    Call it before anything asks OpenCL for devices: PoCL starts its worker then, with the affinity of the caller, and
    reads its settings. Later calls change nothing about PoCL. Drivers of real GPUs ignore it.
    """
    allowed = sorted(os.sched_getaffinity(0))
    cores = Cores(device=allowed[-1], host=allowed[0])
    os.environ["POCL_MAX_PTHREAD_COUNT"] = "1"
    os.sched_setaffinity(0, {cores.device})
    try:
        from targets.opencl import interface as opencl

        opencl.devices()
    finally:
        os.sched_setaffinity(0, {cores.host})
    return cores
