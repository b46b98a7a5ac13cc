"""Two processors that read the same DRAM at the same time.

Each has its own limit when it runs alone. Together they get at most the board's share of its DRAM peak; where they ask
for more, both are slowed in proportion while both run: t' = t x max(1, sum of demands / limit) for the part of the time
that waits for memory, and further while their traffic would still exceed the limit. When one ends, the other goes on
at its own speed.
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.cpu_reads import reached_gb_per_s
from costmodel.factors import Factors
from targets.device import Board, Cluster

_MOST_FURTHER = 100.0  # times what the demands alone would slow; beyond it both are slowed alike


@dataclass(frozen=True)
class Load:
    """Work of one processor when it runs alone.

    Attributes:
        total_s: its time.
        memory_s: the part of it that waits for memory.
        dram_bytes: what it reads from DRAM in that time.
    """

    total_s: float
    memory_s: float
    dram_bytes: float

    @property
    def demand_bytes_per_s(self) -> float:
        """Average rate it asks for."""
        return self.dram_bytes / self.total_s if self.total_s > 0 else 0.0

    def __mul__(self, times: float) -> Load:
        """The same work several times in a row."""
        return Load(self.total_s * times, self.memory_s * times, self.dram_bytes * times)


def together_bytes_per_s(board: Board, factors: Factors, shared: Cluster | None = None) -> float:
    """What two processors read together: a share of the DRAM peak, never less than the fastest reads alone.

    What a cluster reads alone is the most that the board states, or that kernels reach with some number of threads: a
    copy reads less than they do. Two groups of cores of one cluster, `shared`, get what all its cores read together.
    """
    if shared is not None:
        return 1e9 * reached_gb_per_s(factors, shared, shared.count)
    alone = [max(c.bandwidth_all_threads_gb_per_s, *c.bandwidth_by_threads_gb_per_s, 0.0) for c in board.clusters]
    alone += [reached_gb_per_s(factors, c, threads) for c in board.clusters for threads in range(1, c.count + 1)]
    if board.gpu is not None:
        alone.append(board.gpu.bandwidth_gb_per_s)
    return 1e9 * max(*alone, factors.dram_together * board.dram.peak_bandwidth_gb_per_s)


def slowdowns(a: Load, b: Load, limit_bytes_per_s: float) -> tuple[float, float]:
    """How much longer each takes while both run: (total + memory x (s - 1)) / total, s = demand / limit, at least 1.

    Traffic that arithmetic hides is traffic, too: where both together would still read more than the limit, s rises
    until they do not, and what waits for memory waits longer; where nothing waits for memory, both are slowed alike.
    """

    def slowed(s: float) -> tuple[float, float]:
        first, second = (1.0 if x.total_s <= 0 else 1.0 + (s - 1.0) * x.memory_s / x.total_s for x in (a, b))
        return first, second

    def over_limit(s: float) -> float:
        first, second = slowed(s)
        return (a.demand_bytes_per_s / first + b.demand_bytes_per_s / second) / limit_bytes_per_s

    s = max(1.0, over_limit(1.0))
    if over_limit(s) > 1.0:
        low, high = s, _MOST_FURTHER * s
        for _ in range(60):
            s = (low + high) / 2
            low, high = (s, high) if over_limit(s) > 1.0 else (low, s)
        s = high
    more = max(1.0, over_limit(s))
    return slowed(s)[0] * more, slowed(s)[1] * more


def side_by_side(a: Load, b: Load, limit_bytes_per_s: float) -> tuple[float, float]:
    """Seconds until each ends when both start together."""
    slow_a, slow_b = slowdowns(a, b, limit_bytes_per_s)
    end_a, end_b = a.total_s * slow_a, b.total_s * slow_b
    if end_a <= end_b:
        done = end_a / slow_b if slow_b else 0.0  # of b, in seconds of running alone
        return end_a, end_a + max(0.0, b.total_s - done)
    done = end_b / slow_a
    return end_b + max(0.0, a.total_s - done), end_b
