"""How many threads the CPU kernels get; it must be decided before TVM is imported."""

from __future__ import annotations

import os
from collections.abc import Set
from pathlib import Path

from costmodel.schema.plan import Plan
from targets.errors import UserError


def choose_threads(option: int | None, plan: Plan | None) -> int:
    """Return --threads, else TVM_NUM_THREADS, else the plan's ``threads``, else the number of physical cores.

    TVM's own default is half the hardware threads, which is wrong on every CPU without SMT. A plan for a machine with
    more CPUs than this process may use gets those there are.

    Raises:
        UserError: more threads are asked for than this process may use CPUs.
    """
    if option is not None:
        return _within_cpus(option, "--threads")
    stated = os.environ.get("TVM_NUM_THREADS", "")
    if stated.isdecimal() and int(stated) > 0:
        return _within_cpus(int(stated), "TVM_NUM_THREADS")
    return physical_cores() if plan is None else min(plan.threads, len(usable_cpus()))


def choose_prompt_threads(threads: int, plan: Plan | None) -> int:
    """Return the plan's ``prompt_threads`` where the kernels have the plan's ``threads``, else those they have."""
    if plan is None or not plan.prompt_threads or threads != plan.threads:
        return threads
    cores = cluster_cores(plan, set(usable_cpus())) or usable_cpus()
    return min(plan.prompt_threads, len(cores))


def usable_cpus() -> list[int]:
    """Return the CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))


def _within_cpus(threads: int, name: str) -> int:
    usable = len(usable_cpus())
    if threads > usable:
        many = "1 CPU" if usable == 1 else f"{usable} CPUs"
        raise UserError(f"{name} {threads}: this process may use {many}, more threads would wait for each other")
    return threads


def physical_cores(sysfs: Path = Path("/sys/devices/system/cpu")) -> int:
    """Return the number of cores this process may run on, counting SMT siblings once."""
    cores = set()
    for cpu in usable_cpus():
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


def cluster_cores(plan: Plan | None, allowed: Set[int]) -> list[int]:
    """Return the cores of the plan's cluster where they are some of those that this process may use, else nothing.

    Then the system alone decides, as on another machine than the one the plan was made for.
    """
    cores = set() if plan is None else set(plan.cpu_ids)
    return sorted(cores) if cores < set(allowed) else []


def stay_on_cluster(plan: Plan | None, threads: int, tvms_pool: bool = True) -> None:
    """Keep the calling thread and the kernels' threads on the cores of the plan's cluster.

    Our pools stay where the thread is that opens them. TVM's own choice is always the fastest cores, so it is told;
    call this when TVM is loaded. More threads than cores in the cluster are left where they are.
    """
    cores = cluster_cores(plan, os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not cores or threads > len(cores):
        return
    if not tvms_pool:
        os.sched_setaffinity(0, cores)
        return
    import tvm

    share_all_cores = -3  # AffinityMode kSpecifyThreadShareAllCore of TVM's threading backend
    tvm.get_global_func("runtime.config_threadpool")(share_all_cores, threads, [str(core) for core in cores])
