"""How many threads the CPU kernels get; it must be decided before TVM is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def choose_threads(option: int | None, plan: Mapping[str, Any]) -> int:
    """Return --threads, else TVM_NUM_THREADS, else the plan's ``threads``, else the number of physical cores.

    TVM's own default is half the hardware threads, which is wrong on every CPU without SMT.
    """
    if option is not None:
        return option
    stated = os.environ.get("TVM_NUM_THREADS", "")
    if stated.isdecimal() and int(stated) > 0:
        return int(stated)
    planned = plan.get("threads")
    return planned if type(planned) is int and planned > 0 else physical_cores()


def physical_cores(sysfs: Path = Path("/sys/devices/system/cpu")) -> int:
    """Return the number of cores this process may run on, counting SMT siblings once."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in allowed:
        try:
            siblings = (sysfs / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text("ascii").strip()
        except OSError:
            siblings = str(cpu)
        cores.add(siblings)
    return len(cores)


def prepare_environment(threads: int) -> None:
    """Set what TVM reads when it is imported: the runtime library alone, and the number of threads."""
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"
    os.environ["TVM_NUM_THREADS"] = str(threads)
