"""From what was measured to the table: the fit, the predictions beside the measurements, and the errors by term."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from prediction_cases import CASES, PAIRS, Pair

from costmodel.factors import Factors
from costmodel.fit import Fit, Point, fit
from costmodel.roofline import CpuSlice, GpuSlice, Processor, Roofline, dram_bytes
from costmodel.schema.measured import MeasuredStep
from costmodel.schema.record import SchemaError
from costmodel.speculative import RoundCosts, expected_tokens, sequential_round
from costmodel.work import step_units
from hetero_sd.acceptance_rate import judge
from hetero_sd.runtime.calibrate.measure import Step
from hetero_sd.runtime.decode.trace import Round
from targets.device import Board
from targets.read_board import read_board

LEAST = 10  # samples of a point with steady bandwidth; fewer make it unstable
ERROR = 0.05  # the standard error of the median of the turns of a round may be this share of it
PLATEAU = 0.03  # draft lengths this close to the best are as good
TERMS = ("decode n=1", "verify n=4", "verify n=8", "prefill 64", "round", "speed-up")


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

    Raises:
        OldFileError: another version wrote a file.
    """
    samples: dict[tuple[str, MeasuredStep], list[Any]] = {}
    for path in sorted(folder.glob("steps-*.json")):
        for processor, step, found in read_steps(path):
            samples.setdefault((processor, step), []).extend(found)
    points = []
    for (processor, step), found in samples.items():
        p = Step(step, int, [tuple(s) for s in found]).point(LEAST)
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


def fit_all(board: Board, points: Sequence[Point]) -> Fit:
    """Fit on calibration's models, which have other widths than those that are judged."""
    return fit(board, points, lambda p: not CASES[p.spec.name].fitted)


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


class MeasuredPair:
    """What the runs of one pair say: rounds by draft length, acceptance by position, bandwidth."""

    def __init__(self, pair: Pair, paths: Iterable[Path]) -> None:
        """Read all processes' files."""
        self.pair = pair
        files = [json.loads(path.read_text("utf-8")) for path in paths]
        runs = [run for file in files for run in file["runs"]]
        self.gammas = sorted({run["gamma"] for run in runs})
        self.past = 64
        self.bandwidth = median([rate for file in files for rate in file["bandwidth_gb_per_s"]])
        self.turns = {g: [r for r in runs if r["gamma"] == g and r["total_s"]] for g in self.gammas}
        rounds = [
            Round(run["gamma"], accepted, 0.0, 0.0, 0.0, 0.0)
            for run in runs
            if run["gamma"]
            for accepted in run["accepted"]
        ]
        seen = judge(rounds, max(self.gammas))
        self.alpha = [p / max(1, s) for p, s in zip(seen.passed, seen.seen, strict=True)]

    def round_s(self, gamma: int) -> float:
        """Median over the turns of the mean round."""
        return median([mean(t["total_s"]) for t in self.turns[gamma]])

    def stable(self, gamma: int) -> bool:
        """Enough turns, and their median is certain."""
        times = sorted(mean(t["total_s"]) for t in self.turns[gamma])
        error = 0.929 * (times[(3 * len(times)) // 4] - times[len(times) // 4]) / len(times) ** 0.5
        return len(times) >= LEAST and error <= ERROR * median(times)

    def tokens(self, gamma: int) -> float:
        """Mean tokens of a round."""
        return 1 + mean([a for t in self.turns[gamma] for a in t["accepted"]])

    def dispatch_s(self) -> float:
        """Median time of a round outside both models."""
        return median(
            [
                whole - draft - verify
                for turns in self.turns.values()
                for t in turns
                for whole, draft, verify in zip(t["total_s"], t["draft_s"], t["verify_s"], strict=True)
            ]
        )


def round_costs(pair: MeasuredPair, board: Board, factors: Factors, shapes: dict[str, Any], flat: bool) -> RoundCosts:
    """The terms of the pair's rounds, by the model or by the flat roofline."""
    draft, target = shapes[pair.pair.draft], shapes[pair.pair.target]
    sizes = {s.name: dram_bytes(step_units(s, 1, pair.past)) for s in (draft, target)}
    if flat:
        rate = pair.bandwidth * 1e9
        return RoundCosts(*[sizes[draft.name] / rate] * 2, lambda n: sizes[target.name] / rate)
    one, every = board.clusters[0].bandwidth_one_thread_gb_per_s, board.clusters[0].bandwidth_all_threads_gb_per_s
    one, every = (min(one, pair.bandwidth), pair.bandwidth) if "2" in pair.pair.target_on else (pair.bandwidth, every)
    cluster = replace(board.clusters[0], bandwidth_one_thread_gb_per_s=one, bandwidth_all_threads_gb_per_s=every)
    gpu = replace(board.gpu, bandwidth_gb_per_s=pair.bandwidth) if board.gpu else None
    here = replace(board, clusters=(cluster,), gpu=gpu)
    roofline = Roofline(here, factors)

    def place(on: str) -> Processor:
        return GpuSlice(gpu, cluster) if on == "gpu" and gpu else CpuSlice(((cluster, 2 if on == "2" else 1),))

    def step(shape: Any, on: str, n: int, beside: float, in_a_row: int | None = None) -> float:
        return float(roofline.step(shape, place(on), n, pair.past, 1, beside, in_a_row).total_s)

    one, two = (step(draft, pair.pair.draft_on, n, sizes[target.name], 0) for n in (1, 2))
    return RoundCosts(
        *(one, two, lambda n: step(target, pair.pair.target_on, n, sizes[draft.name] if n > 1 else 0.0)),
        roofline.round_overhead_s(),
        drafts_s=lambda gamma: sum(step(draft, pair.pair.draft_on, 1, sizes[target.name], i) for i in range(gamma)),
    )


def pair_rows(pair: MeasuredPair, board: Board, factors: Factors, shapes: dict[str, Any]) -> list[dict[str, Any]]:
    """Rounds and speed-ups of every draft length, and whether the choice of it would have been right."""
    costs, flat = (round_costs(pair, board, factors, shapes, flat) for flat in (False, True))
    speed = {g: pair.tokens(g) / pair.round_s(g) for g in pair.gammas}
    guess = {g: sequential_round(pair.alpha, g, costs).tokens_per_s for g in pair.gammas}
    plain = {g: sequential_round(pair.alpha, g, flat).tokens_per_s for g in pair.gammas}
    chosen = max(guess, key=lambda g: guess[g])
    good = [g for g in pair.gammas if speed[g] >= (1 - PLATEAU) * max(speed.values())]
    rows = []
    for g in pair.gammas:
        predicted = sequential_round(pair.alpha, g, costs)
        rows.append(
            {
                "draft": pair.pair.draft,
                "target": pair.pair.target,
                "draft_on": pair.pair.draft_on,
                "target_on": pair.pair.target_on,
                "gamma": g,
                "stable": pair.stable(g),
                "bandwidth_gb_per_s": pair.bandwidth,
                "alpha": pair.alpha,
                "tokens": pair.tokens(g),
                "expected_tokens": expected_tokens(pair.alpha, g),
                "round_s": pair.round_s(g),
                "predicted_round_s": predicted.time_s,
                "round_error": predicted.time_s / pair.round_s(g) - 1,
                "flat_round_error": sequential_round(pair.alpha, g, flat).time_s / pair.round_s(g) - 1,
                "speedup": speed[g] / speed[0],
                "predicted_speedup": guess[g] / guess[0],
                "speedup_error": (guess[g] / guess[0]) / (speed[g] / speed[0]) - 1,
                "flat_speedup_error": (plain[g] / plain[0]) / (speed[g] / speed[0]) - 1,
                "chosen": g == chosen,
                "good": g in good,
            }
        )
    return rows


def evaluate(folder: Path, board: Board, shapes: dict[str, Any]) -> dict[str, Any]:
    """Everything that the table shows, from what lies in the folder."""
    points = read_points(folder, shapes)
    board = with_measured(with_pocl(board), points)
    fitted = fit_all(board, points)
    pairs = {}
    for pair in PAIRS:
        if paths := sorted(folder.glob(f"rounds-{pair.name}-*.json")):
            pairs[pair.name] = MeasuredPair(pair, paths)
    factors = fitted.factors
    calibration = [p for p in pairs.values() if p.pair.fitted]
    if calibration:
        hz = board.clusters[0].frequency_ghz * 1e9
        factors = replace(factors, round_cycles=max(1.0, median([p.dispatch_s() for p in calibration]) * hz))
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
            found["round"].append((r["stable"], r["round_error"], r["flat_round_error"]))
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
        key = (r["draft"], r["target"], r["draft_on"], r["target_on"])
        row = rows.setdefault(key, {"pair": key, "chosen": 0, "good": [], "stable": True, "best": 1.0})
        row["stable"] &= r["stable"]
        row["best"] = max(row["best"], r["speedup"])
        if r["chosen"]:
            row["chosen"] = r["gamma"]
        if r["good"]:
            row["good"].append(r["gamma"])
    return [{**row, "right": row["chosen"] in row["good"]} for row in rows.values()]
