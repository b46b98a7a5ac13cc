"""A board with what was measured on it in place of what its file said: bandwidths, the GPU's costs, factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from costmodel.fit import BOUNDS, Fit
from costmodel.schema.measured import GPU, GpuDevice, Measured
from targets.device import Board
from targets.read_board import board_from_json, read_board

_HOW = "run.py --calibrate: largest element of a 256 MB array"
GPU_HOW = "run.py --calibrate: OpenCL kernel that reads 256 MB"


def with_bandwidth(board: Board, cluster: str, measured: Sequence[Measured]) -> Board:
    """The board with the measured bandwidths in place of the file's.

    `cluster` is where the models ran; other clusters are recognised by their CPU numbers. What was not measured stays
    as the file says; an assumed number gives way where a measured one contradicts it.

    Raises:
        UserError: they contradict the board's other numbers.
    """
    table = _table(board)
    reads = _reads_by_threads(board, cluster, measured)
    for c in table["clusters"]:
        if by_threads := reads.get(c["name"]):
            _put_reads(c, by_threads)
    most = [max(reads[c["name"]].values()) for c in table["clusters"] if c["name"] in reads]
    _raise_peak(table, [*most, *(c["bandwidth_all_threads_gb_per_s"]["value"] for c in table["clusters"])])
    return read_board(table, "the calibrated board", {})


def with_region_cost(board: Board, cluster: str, measured: Sequence[Measured]) -> Board:
    """The board with what a parallel region of the cluster costs, as our thread pool measured it with most threads."""
    costs = {threads: cost for m in measured for threads, cost in m.region_cost_s.items()}
    if not costs:
        return board
    table, most = _table(board), max(costs)
    source = f"run.py --calibrate: what a region of {most} threads adds to its work"
    for c in table["clusters"]:
        if c["name"] == cluster:
            value = float(f"{max(1e-9, costs[most]):.3g}")
            c["launch_overhead_s"] = {"value": value, "kind": "measured", "source": source}
    return read_board(table, "the calibrated board", {})


def with_gpu(board: Board, measured: Sequence[Measured]) -> Board:
    """The board with the GPU's measured bandwidth and launch; a GPU that its file does not have is added.

    Raises:
        UserError: they contradict the board's other numbers.
    """
    costs = next((m.gpu for m in reversed(measured) if m.gpu is not None), None)
    if costs is None:
        return board
    table = _table(board)
    gpu = table.get("gpu") or _unknown_gpu(costs.device)
    rates = [e.gb_per_s[0] for m in measured if m.gpu is not None for e in m.bandwidths if e.readers == (GPU,)]
    if rates:
        gpu["bandwidth_gb_per_s"] = {"value": round(max(rates), 3), "kind": "measured", "source": GPU_HOW}
        _raise_peak(table, [max(rates)])
    start = "run.py --calibrate: half of an empty kernel and the wait for its end"
    launch = max(1e-9, costs.start_s / 2)
    gpu["launch_overhead_s"] = {"value": float(f"{launch:.3g}"), "kind": "measured", "source": start}
    table["gpu"] = gpu
    return read_board(table, "the calibrated board", {})


def measured_factors(board: Board, measured: Sequence[Measured]) -> dict[str, float]:
    """Factors measured by themselves: the loop, two models in turn, two readers together, a queued kernel's launch.

    Turns, and starts of texts, are those of most threads, which plans of two models take: more caches get cold.
    """
    factors = {}
    hz, loops = board.clusters[0].frequency_ghz * 1e9, [m.loop_s for m in measured if m.loop_s]
    if loops:
        factors["round_cycles"] = max(1.0, min(loops) * hz)
    by_threads = sorted(measured, key=lambda m: m.threads)
    if starts := [m.start_s for m in by_threads if m.start_s is not None]:
        factors["start_cycles"] = max(1.0, starts[-1] * hz)
    if turns := [m.turns for m in by_threads if m.turns is not None]:
        factors["turn_cycles"] = max(1.0, min(t.loop_s for t in turns) * hz)
        factors["draft_turn_cycles"] = max(1.0, turns[-1].draft_s * hz)
        factors["verify_turn_cycles"] = max(1.0, turns[-1].verify_s * hz)
        factors["turn_start_cycles"] = max(1.0, turns[-1].start_s * hz)
    peak = board.dram.peak_bandwidth_gb_per_s
    together = [sum(e.gb_per_s) for m in measured for e in m.bandwidths if len(e.readers) > 1]
    if together:
        factors["dram_together"] = max(together) / peak
    for m in measured:
        if m.gpu is not None and board.gpu is not None and board.gpu.launch_overhead_s > 0:
            ratio = m.gpu.queued_s / board.gpu.launch_overhead_s
            low, high = BOUNDS["gpu_dispatch"]
            factors["gpu_dispatch"] = min(high, max(low, ratio))
    return factors


def with_factors(board: Board, found: Fit, measured: dict[str, float]) -> Board:
    """The board with its factors, fitted or measured by themselves; `load_board` reads them with its other numbers."""
    used = [r for r in found.residuals if r.point.stable and not r.held_out]
    source = f"fitted to {len(used)} steps of run.py --calibrate"
    if any(r.held_out and r.point.stable for r in found.residuals):
        middle, worst = found.error(True)
        source += f"; on points held out {100 * middle:.1f} % median error, {100 * worst:.1f} % worst"
    values = found.factors.to_json()
    sources = {name: "run.py --calibrate" for name in measured} | {name: source for name in found.names}
    facts = {
        name: {"value": float(f"{values[name]:.6g}"), "kind": "measured", "source": how}
        for name, how in sources.items()
    }
    return board_from_json({**board.to_json(), "factors": facts}, "the calibrated board")


def _table(board: Board) -> dict[str, Any]:
    table = board.to_json()
    del table["format"]
    if table["gpu"] is None:
        del table["gpu"]
    return table


def _reads_by_threads(board: Board, cluster: str, measured: Sequence[Measured]) -> dict[str, dict[int, float]]:
    """Cluster -> threads -> the most GB/s that so many threads read there; only what was measured."""
    found: dict[str, dict[int, float]] = {}

    def add(name: str, threads: int, gb_per_s: float) -> None:
        by_threads = found.setdefault(name, {})
        by_threads[threads] = round(max(gb_per_s, by_threads.get(threads, 0.0)), 3)

    for m in measured:
        add(cluster, 1, m.bandwidth_one_thread_gb_per_s)
        if m.threads <= board.cluster(cluster).count:
            add(cluster, m.threads, m.bandwidth_gb_per_s)
        for entry in m.bandwidths:
            cpus = [cpu for reader in entry.readers if reader != GPU for cpu in reader]
            if GPU in entry.readers or len(set(cpus)) < len(cpus):
                continue
            for c in board.clusters:
                if set(cpus) <= set(c.cpu_ids):
                    add(c.name, len(cpus), sum(entry.gb_per_s))
    return found


def _put_reads(cluster: dict[str, Any], measured: dict[int, float]) -> None:
    """Write what so many threads read into the table of a cluster: two numbers, and all where they fall again."""
    count = cluster["count"]["value"]
    for name in ("gb_per_s", "rate"):  # of another board or system; these are of this one
        cluster.pop(f"bandwidth_by_threads_{name}", None)
    most = max(measured, key=lambda threads: measured[threads])
    reads = dict(measured)
    for name, threads, more in (("one_thread", 1, False), ("all_threads", count, True)):
        key, rate = f"bandwidth_{name}_gb_per_s", f"bandwidth_{name}_rate"
        if threads in measured:
            cluster[key] = {"value": measured[threads], "kind": "measured", "source": _HOW}
            cluster[rate] = "read"
        if cluster.get(rate, "read") != "read":
            continue  # what a copy or a decoder reads is held against nothing
        value = cluster[key]["value"]
        bound = max(value, measured[most]) if more else min(value, measured[most])
        if cluster[key]["kind"] == "assumed" and bound != value:
            source = f"no {'less' if more else 'more'} than what {_threads([most])} read"
            cluster[key] = {"value": bound, "kind": "assumed", "source": source}
        reads[threads] = cluster[key]["value"]
    if {1, count} <= reads.keys() and max(reads.values()) > reads[count]:
        other = [threads for threads in range(1, count + 1) if threads not in measured]
        source = f"{_HOW}; {_threads(other)}: the board file's, or between their neighbours" if other else _HOW
        value = [_between(reads, threads) for threads in range(1, count + 1)]
        cluster["bandwidth_by_threads_gb_per_s"] = {"value": value, "kind": "measured", "source": source}


def _between(reads: dict[int, float], threads: int) -> float:
    """GB/s of so many threads: as known, else on a falling line, or adding up to what more threads read."""
    if threads in reads:
        return reads[threads]
    low, high = max(t for t in reads if t < threads), min(t for t in reads if t > threads)
    if reads[high] >= reads[low]:
        return round(min(threads / low * reads[low], reads[high]), 3)
    return round(reads[low] + (reads[high] - reads[low]) * (threads - low) / (high - low), 3)


def _threads(counts: Sequence[int]) -> str:
    return f"{', '.join(map(str, counts))} thread{'s' * (list(counts) != [1])}"


def _raise_peak(table: dict[str, Any], rates: Sequence[float]) -> None:
    """An assumed DRAM peak gives way to reads above it."""
    peak = table["dram"]["peak_bandwidth_gb_per_s"]
    if peak["value"] < max(rates) and peak["kind"] == "assumed":
        source = "a quarter above the measured reads"
        table["dram"]["peak_bandwidth_gb_per_s"] = {**peak, "value": round(1.25 * max(rates), 2), "source": source}


def _unknown_gpu(device: GpuDevice) -> dict[str, Any]:
    """A GPU by what its driver says; the arithmetic rate is assumed, the fit corrects it."""
    units, clock = max(1, device.compute_units), max(0.05, device.clock_mhz / 1000)

    def fact(value: object, kind: str = "measured", source: str = "the OpenCL driver") -> dict[str, object]:
        return {"value": value, "kind": kind, "source": source}

    return {
        "model": device.name,
        "shader_cores": fact(units),
        "frequency_ghz": fact(round(clock, 3)),
        "fp32_gflops": fact(round(32 * units * clock, 2), "assumed", "32 operations a cycle and compute unit"),
        "fp16_gflops": fact(0, "assumed", "not used"),
        "bandwidth_gb_per_s": fact(1.0),
        "launch_overhead_s": fact(1e-5),
        "unified_memory": fact(device.unified_memory),
        "opencl_version": fact("3.0", "assumed", "not read"),
        "max_work_group_size": fact(device.max_work_group),
        "has_fp16": fact(False, "assumed", "not used"),
    }
