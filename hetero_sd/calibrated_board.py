"""A board with what was measured on it in place of what its file said: bandwidths, the GPU's costs, factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from costmodel.fit import BOUNDS, Fit
from costmodel.schema.measured import GPU, GpuDevice, Measured
from targets.device import Board, read_board

_HOW = "run.py --calibrate: largest element of a 256 MB array"
GPU_HOW = "run.py --calibrate: OpenCL kernel that reads 256 MB"


def with_bandwidth(board: Board, cluster: str, measured: Sequence[Measured]) -> Board:
    """The board with the measured bandwidths in place of the file's.

    `cluster` is where the models ran; other clusters are recognised by their CPU numbers.

    Raises:
        UserError: they contradict the board's other numbers.
    """
    table = _table(board)
    rates: dict[tuple[str, str], list[float]] = {}
    for m in measured:
        rates.setdefault((cluster, "one_thread"), []).append(m.bandwidth_one_thread_gb_per_s)
        if m.threads == board.cluster(cluster).count:
            rates.setdefault((cluster, "all_threads"), []).append(m.bandwidth_gb_per_s)
        for entry in m.bandwidths:
            if GPU in entry.readers:
                continue
            cpus = {cpu for reader in entry.readers for cpu in reader}
            for c in board.clusters:
                if cpus == set(c.cpu_ids):
                    rates.setdefault((c.name, "all_threads"), []).append(sum(entry.gb_per_s))
    for c in table["clusters"]:
        one, every = (max(rates.get((c["name"], key), [0.0])) for key in ("one_thread", "all_threads"))
        every = max(every, one)
        one = one or min(every, c["bandwidth_one_thread_gb_per_s"]["value"])
        if not every:
            continue
        kinds = {"one_thread": (c["name"], "one_thread") in rates, "all_threads": True}
        for name, value in (("one_thread", one), ("all_threads", every)):
            if kinds[name]:
                c[f"bandwidth_{name}_gb_per_s"] = {"value": round(value, 3), "kind": "measured", "source": _HOW}
                c[f"bandwidth_{name}_rate"] = "read"
                c.pop("bandwidth_by_threads_gb_per_s", None)  # of another board or system; these are of this one
            elif c["bandwidth_one_thread_gb_per_s"]["value"] > value:
                c["bandwidth_one_thread_gb_per_s"]["value"] = round(value, 3)
    _raise_peak(table, [c["bandwidth_all_threads_gb_per_s"]["value"] for c in table["clusters"]])
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
    """Factors that were measured by themselves: what two processors read together, and a queued kernel's launch."""
    factors = {}
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
    return Board.from_json({**board.to_json(), "factors": facts}, "the calibrated board")


def _table(board: Board) -> dict[str, Any]:
    table = board.to_json()
    del table["format"]
    if table["gpu"] is None:
        del table["gpu"]
    return table


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
