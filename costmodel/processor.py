"""Where a model can run on a board: some cores of one cluster or of several, or the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from targets.device import Board, Cluster, Gpu


@dataclass(frozen=True)
class CpuSlice:
    """Some cores of one cluster, or of several: TVM gives each thread the same share, so the slowest one decides.

    Attributes:
        parts: (cluster, threads), the main thread's cluster first.
    """

    parts: tuple[tuple[Cluster, int], ...]

    @property
    def name(self) -> str:
        """For people: ``a76 x4``, ``a76 x4 + a55 x4``."""
        return " + ".join(f"{cluster.name} x{threads}" for cluster, threads in self.parts)

    @property
    def family(self) -> str:
        """What it runs on, without thread counts."""
        return " + ".join(cluster.name for cluster, _ in self.parts)

    @property
    def threads(self) -> int:
        """All threads."""
        return sum(threads for _, threads in self.parts)

    @cached_property
    def cores(self) -> dict[str, int]:
        """Cluster -> cores in use."""
        return {cluster.name: threads for cluster, threads in self.parts}


@dataclass(frozen=True)
class GpuSlice:
    """The GPU; a CPU thread of the cluster `host` enqueues its kernels."""

    gpu: Gpu
    host: Cluster

    name = "gpu"
    family = "gpu"
    threads = 1

    @property
    def cores(self) -> dict[str, int]:
        """No CPU core is busy with arithmetic."""
        return {}


Processor = CpuSlice | GpuSlice


def processors(board: Board) -> list[Processor]:
    """Every cluster with one thread up to all cores, and the GPU; clusters in the board's order."""
    slices: list[Processor] = [
        CpuSlice(((cluster, threads),)) for cluster in board.clusters for threads in range(1, cluster.count + 1)
    ]
    if board.gpu is not None:
        slices.append(GpuSlice(board.gpu, board.clusters[0]))
    return slices


def all_cores(board: Board) -> CpuSlice | None:
    """All cores of all clusters together, or None where there is one cluster only."""
    return CpuSlice(tuple((c, c.count) for c in board.clusters)) if len(board.clusters) > 1 else None


def cache_bytes(processor: Processor) -> float:
    """Private level-2 caches of the cores in use, plus the last level."""
    if isinstance(processor, GpuSlice):
        return 0.0
    private = sum(cluster.l2_bytes * threads for cluster, threads in processor.parts)
    return private + max(cluster.l3_bytes for cluster, _ in processor.parts)
