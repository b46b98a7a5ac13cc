"""From what was measured to the table: the fit, the predictions beside the measurements, and the errors by term."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from prediction_cases import CASES, PAIRS, SEQUENTIAL
from prediction_rounds import LEAST, MeasuredPair, pair_rows

from costmodel.factors import Factors
from costmodel.fit import Fit, Point, fit
from costmodel.processor import CpuSlice, cache_bytes
from costmodel.roofline import dram_bytes
from costmodel.schema.measured import MeasuredStep
from costmodel.schema.record import SchemaError
from costmodel.turns import kept_bytes
from costmodel.work import step_units
from hetero_sd.runtime.calibrate.measure import LEAST_REPEATS, Step
from targets.device import Board
from targets.read_board import read_board

TERMS = (
    "decode n=1",
    "verify n=4",
    "verify n=8",
    "prefill 64",
    "round",
    "round, overlapped",
    "round, n-gram",
    "speed-up",
)


def with_pocl(board: Board) -> Board:
    """The board with PoCL on one core as its GPU; rates as one core has them, what kernels reach of them is fitted."""
    table = board.to_json()
    table.pop("format")
    core = board.clusters[0]

    def fact(value: object, source: str = "PoCL on one core stands in for a GPU") -> dict[str, object]:
        return {"value": value, "kind": "assumed", "source": source}

    table["gpu"] = {
        "model": "PoCL",
        "shader_cores": fact(1),
        "frequency_ghz": fact(core.frequency_ghz),
        "fp32_gflops": fact(core.frequency_ghz * core.core.fp32_flops_per_cycle, "of one core"),
        "fp16_gflops": fact(0),
        "bandwidth_gb_per_s": fact(core.bandwidth_one_thread_gb_per_s, "of one thread"),
        "launch_overhead_s": fact(1.3e-5, "an empty kernel and the wait for its end, benchmarks/opencl.py"),
        "unified_memory": fact(True),
        "opencl_version": fact("3.0"),
        "max_work_group_size": fact(4096),
        "has_fp16": fact(False),
    }
    return read_board(table, "this machine with PoCL", {})


class OldFileError(Exception):
    """A file of measured steps that this version does not read, in one line."""


def read_steps(path: Path) -> list[tuple[str, MeasuredStep, list[Any]]]:
    """(processor, step, samples) of the points in a file of prediction_worker.py.

    Raises:
        OldFileError: another version wrote it.
    """
    data = json.loads(path.read_text("utf-8"))
    try:
        found = [(data["processor"], MeasuredStep(**p["step"]), p["samples"]) for p in data["points"]]
        if strange := next((step.model for _, step, _ in found if step.model not in CASES), None):
            raise SchemaError(f"there is no model {strange!r}")
    except (KeyError, TypeError, SchemaError) as error:
        raise OldFileError(f"{path}: another version wrote it ({error}): measure again, which replaces it") from None
    return found


def read_points(folder: Path, shapes: dict[str, Any]) -> list[Point]:
    """Every step that was measured, its samples of all processes together.

    What the fit sees is stable with as many samples as a calibration asks for, what is judged with LEAST.

    Raises:
        OldFileError: another version wrote a file.
    """
    samples: dict[tuple[str, MeasuredStep], list[Any]] = {}
    for path in sorted(folder.glob("steps-*.json")):
        for processor, step, found in read_steps(path):
            samples.setdefault((processor, step), []).extend(found)
    points = []
    for (processor, step), found in samples.items():
        least = LEAST_REPEATS if CASES[step.model].fitted else LEAST
        p = Step(step, int, [tuple(s) for s in found]).point(least)
        cluster, threads = ("gpu", 1) if processor == "gpu" else ("cpu", int(processor))
        facts = (p.n, p.past, p.seconds, p.bandwidth_gb_per_s, p.stable, p.chunk)
        points.append(Point(shapes[p.model], cluster, threads, *facts))
    return points


def with_measured(board: Board, points: Sequence[Point]) -> Board:
    """The board with the median bandwidth beside the points of one thread and of two."""
    rates = {t: median([p.bandwidth_gb_per_s for p in points if p.threads == t and p.cluster == "cpu"]) for t in (1, 2)}
    cluster = replace(
        board.clusters[0], bandwidth_one_thread_gb_per_s=rates[1], bandwidth_all_threads_gb_per_s=rates[2]
    )
    return replace(board, clusters=(cluster,))


def fit_all(board: Board, points: Sequence[Point], start: Factors) -> Fit:
    """Fit on calibration's models, which have other widths than those that are judged."""
    return fit(board, points, lambda p: not CASES[p.spec.name].fitted, start)


def kept_share(board: Board, points: Sequence[Point], pairs: Sequence[MeasuredPair], shapes: dict[str, Any]) -> float:
    """`cache_kept`, by what the target's step loses in rounds of calibration's largest pair, beyond the smallest one's.

    A cache gives what the fastest of calibration's steps with one thread read, memory what was read beside them.
    """
    one = [p for p in points if p.cluster == "cpu" and p.threads == 1 and not p.chunk and CASES[p.spec.name].fitted]
    cache = max(dram_bytes(step_units(p.spec, p.n, p.past)) / p.seconds for p in one)
    caches = cache_bytes(CpuSlice(((board.clusters[0], 1),)))
    turns = {dram_bytes(step_units(shapes[p.pair.target], 1, 0)): p.verify_turn_s for p in pairs if p.turns_s}
    if not turns or max(turns) <= caches:
        return Factors().cache_kept
    lost, memory = turns[max(turns)] - turns[min(turns)], 1e9 * median([p.bandwidth_gb_per_s for p in one])
    return max(Factors().cache_kept, min(1.0, kept_bytes(lost, memory, cache) / caches))


def flat_s(point: Point) -> float:
    """A plain roofline with flat T(n): weights and KV rows over the bandwidth measured beside the point."""
    once = dram_bytes(step_units(point.spec, 1, point.past)) / (point.bandwidth_gb_per_s * 1e9)
    return float(once * (point.n // point.chunk if point.chunk else 1))


def step_rows(fitted: Fit) -> list[dict[str, Any]]:
    """A row for every judged step."""
    rows = []
    for r in fitted.residuals:
        p = r.point
        if not r.held_out:
            continue
        where = "PoCL, 1 core" if p.cluster == "gpu" else f"{p.threads} thread{'s' * (p.threads > 1)}"
        rows.append(
            {
                "term": f"prefill {p.n}" if p.chunk else f"{'decode' if p.n == 1 else 'verify'} n={p.n}",
                "model": p.spec.name,
                "parameters": p.spec.parameters,
                "dtype": p.spec.main_dtype,
                "where": where,
                "past": p.past,
                "bandwidth_gb_per_s": p.bandwidth_gb_per_s,
                "stable": p.stable,
                "measured": p.seconds,
                "predicted": r.predicted_s,
                "error": r.error,
                "flat_error": flat_s(p) / p.seconds - 1,
            }
        )
    return rows


def evaluate(folder: Path, board: Board, shapes: dict[str, Any]) -> dict[str, Any]:
    """Everything that the table shows, from what lies in the folder."""
    points = read_points(folder, shapes)
    board = with_measured(with_pocl(board), points)
    pairs = {}
    for pair in PAIRS:
        if paths := sorted(folder.glob(f"rounds-{pair.name}-*.json")):
            pairs[pair.name] = MeasuredPair(pair, paths)
    calibration = [p for p in pairs.values() if p.pair.fitted]
    fitted = fit_all(board, points, Factors(cache_kept=kept_share(board, points, calibration, shapes)))
    factors = fitted.factors
    if calibration:
        hz = board.clusters[0].frequency_ghz * 1e9
        factors = replace(factors, round_cycles=max(1.0, median([p.dispatch_s() for p in calibration]) * hz))
        for name in ("draft", "verify"):
            if found := [p.turns_s[f"{name}_s"] for p in calibration if p.turns_s]:
                factors = replace(factors, **{f"{name}_turn_cycles": max(1.0, min(found) * hz)})
    return {
        "factors": factors.to_json(),
        "fitted_error": fitted.error(held_out=False),
        "fitted_points": sum(not r.held_out for r in fitted.residuals),
        "steps": step_rows(fitted),
        "rounds": [r for p in pairs.values() if not p.pair.fitted for r in pair_rows(p, board, factors, shapes)],
    }


def by_term(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Median and worst error of the stable points, term by term, beside the flat roofline's."""
    found: dict[str, list[tuple[bool, float, float]]] = {term: [] for term in TERMS}
    for r in result["steps"]:
        found[r["term"]].append((r["stable"], r["error"], r["flat_error"]))
    for r in result["rounds"]:
        if r["gamma"]:
            term = "round" if r["mode"] == SEQUENTIAL else f"round, {r['mode']}"
            found[term].append((r["stable"], r["round_error"], r["flat_round_error"]))
            found["speed-up"].append((r["stable"], r["speedup_error"], r["flat_speedup_error"]))
    rows = []
    for term, points in found.items():
        kept = [(abs(ours), abs(flat)) for stable, ours, flat in points if stable]
        row: dict[str, Any] = {"term": term, "points": len(points), "stable": len(kept)}
        if kept:
            ours, flat = ([x[i] for x in kept] for i in (0, 1))
            row.update(median=median(ours), worst=max(ours), flat_median=median(flat), flat_worst=max(flat))
        rows.append(row)
    return rows


def decisions(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The chosen draft length of every pair and placement beside the measured plateau."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for r in result["rounds"]:
        key = (r["draft"], r["target"], r["draft_on"], r["target_on"], r["mode"])
        start = {"pair": key, "chosen": 0, "good": [], "stable": True, "best": 1.0, "tied": r["tied"]}
        row = rows.setdefault(key, start)
        row["stable"] &= r["stable"]
        row["best"] = max(row["best"], r["speedup"])
        if r["chosen"]:
            row["chosen"] = r["gamma"]
        if r["good"]:
            row["good"].append(r["gamma"])
    return [{**row, "right": row["chosen"] in row["good"]} for row in rows.values()]
