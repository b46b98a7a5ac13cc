"""Facts of a board that cannot both be true."""

from __future__ import annotations

from targets.device import Board, Cluster


def contradiction(board: Board) -> str | None:
    """The first pair of facts that cannot both be true, as a sentence, or None."""
    names = [cluster.name for cluster in board.clusters]
    if len(set(names)) < len(names):
        return f"two clusters have the same name; names are {', '.join(names)}"
    cpu_ids = [cpu for cluster in board.clusters for cpu in cluster.cpu_ids]
    if len(set(cpu_ids)) < len(cpu_ids):
        return "a CPU number stands in cpu_ids twice; each core has a number of its own"
    if len({cluster.core.isa for cluster in board.clusters}) > 1:
        return "the clusters have different isa; one board has one instruction set"
    peak = board.dram.peak_bandwidth_gb_per_s
    for cluster in board.clusters:
        path = f"clusters.{cluster.name}"
        if len(cluster.cpu_ids) != cluster.count:
            return f"{path}.count is {cluster.count}, but cpu_ids lists {len(cluster.cpu_ids)}"
        if problem := _contradictory_bandwidths(cluster, path, peak):
            return problem
    if board.dram.reserved_bytes >= board.dram.capacity_bytes:
        return "dram.reserved_bytes is not below dram.capacity_bytes, so nothing is left for a model"
    if board.gpu is None:
        return None
    if board.gpu.bandwidth_gb_per_s > peak:
        return f"gpu.bandwidth_gb_per_s {board.gpu.bandwidth_gb_per_s:g} is above dram.peak_bandwidth_gb_per_s {peak:g}"
    if board.gpu.has_fp16 != (board.gpu.fp16_gflops > 0):
        return f"gpu.has_fp16 and gpu.fp16_gflops {board.gpu.fp16_gflops:g} contradict each other"
    if board.gpu.native_half and not board.gpu.has_fp16:
        return "gpu.native_half needs gpu.has_fp16, which is false"
    return None


def _contradictory_bandwidths(cluster: Cluster, path: str, peak_gb_per_s: float) -> str | None:
    """The first bandwidths of a cluster that cannot both be true, as a sentence, or None.

    Numbers are held against each other where they are of one kind: a copy and a decoder read less than a plain read.
    Whatever was measured, the DRAM gave it, so that none is above its peak.
    """
    by_threads = cluster.bandwidth_by_threads_gb_per_s
    if by_threads and len(by_threads) != cluster.count:
        return f"{path}.bandwidth_by_threads_gb_per_s has {len(by_threads)} numbers for {cluster.count} cores"
    one, every = cluster.bandwidth_one_thread_gb_per_s, cluster.bandwidth_all_threads_gb_per_s
    for name, value in (("by_threads", max(by_threads, default=0.0)), ("all_threads", every), ("one_thread", one)):
        if value > peak_gb_per_s:
            return f"{path}.bandwidth_{name}_gb_per_s {value:g} is above dram.peak_bandwidth_gb_per_s {peak_gb_per_s:g}"
    one_rate, every_rate = cluster.bandwidth_one_thread_rate, cluster.bandwidth_all_threads_rate
    if not by_threads:
        if one > every and one_rate == every_rate:
            return f"{path}.bandwidth_one_thread_gb_per_s {one:g} is above bandwidth_all_threads_gb_per_s {every:g}"
        return None
    ends = (
        ("begins", by_threads[0], one_rate, f"bandwidth_one_thread_gb_per_s is {one:g}", one),
        ("ends", by_threads[-1], every_rate, f"bandwidth_all_threads_gb_per_s is {every:g}", every),
    )
    for verb, end, rate, said, value in ends:
        if rate == cluster.bandwidth_by_threads_rate and end != value:
            return f"{path}.bandwidth_by_threads_gb_per_s {verb} with {end:g}, but {said}"
    return None
