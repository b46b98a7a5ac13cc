"""Two processors at work at the same time: whether they share cores, and who enqueues the GPU's kernels."""

from __future__ import annotations

from dataclasses import replace

from costmodel.processor import CpuSlice, GpuSlice, Processor
from targets.device import Board, Cluster


def with_enqueuing_core(board: Board, a: Processor, b: Processor) -> tuple[Processor, Processor] | None:
    """The two with the GPU's kernels enqueued from a core that neither computes on; None where there is none."""
    if not any(isinstance(p, GpuSlice) for p in (a, b)):
        return a, b
    busy = {**a.cores, **b.cores}  # one of the two is the GPU, which computes on no core
    free = next((c for c in board.clusters if busy.get(c.name, 0) < c.count), None)
    if free is None:
        return None
    here, there = (replace(p, host=free) if isinstance(p, GpuSlice) else p for p in (a, b))
    return here, there


def disjoint(a: Processor, b: Processor) -> bool:
    """Whether two slices compute on different hardware: the GPU and any cores, or cores of which a board has enough.

    Whether a core is left to enqueue the GPU's kernels is what `with_enqueuing_core` says.
    """
    if isinstance(a, GpuSlice) or isinstance(b, GpuSlice):
        return isinstance(a, GpuSlice) != isinstance(b, GpuSlice)
    counts = {cluster.name: cluster.count for s in (a, b) for cluster, _ in s.parts}
    return all(_cores(a, name) + _cores(b, name) <= count for name, count in counts.items())


def shared_cluster(a: Processor, b: Processor) -> Cluster | None:
    """The cluster that both have cores of, or None."""
    if isinstance(a, GpuSlice) or isinstance(b, GpuSlice):
        return None
    return next((cluster for cluster, _ in a.parts if _cores(b, cluster.name)), None)


def _cores(processor: CpuSlice, cluster: str) -> int:
    return processor.cores.get(cluster, 0)
