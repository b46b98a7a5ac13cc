"""Factors fitted to measurements, with the error on points that the fit has not seen.

Least squares on ln(predicted / measured), so a relative error counts alike at every size; each factor stays within
bounds and is held near its default as far as the measurements leave it open. The bandwidth measured beside a point
prices that point: the factors are shares, not rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from costmodel.cpu_cycles import Cycles
from costmodel.decoder import DecoderSpec
from costmodel.factors import OF_FORMATS, Factors, weights_kind
from costmodel.processor import CpuSlice, GpuSlice, Processor
from costmodel.roofline import Roofline, prompt_units
from costmodel.work import Op, step_units
from targets.device import Board, Cluster, Core
from targets.errors import UserError

# wide on the low side of times: a virtual machine's clock may be stated at half of what it is
CPU_BOUNDS = {  # factor -> (lowest, highest) the fit may choose
    "bandwidth": (0.3, 1.6),
    "bandwidth_one_thread": (0.3, 1.6),
    "bandwidth_float16": (0.5, 2.0),
    "bandwidth_int8": (0.5, 2.0),
    "bandwidth_int4": (0.5, 2.0),
    "compute": (0.2, 3.0),
    "compute_float16": (0.3, 3.0),
    "compute_int8": (0.3, 3.0),
    "compute_int4": (0.3, 3.0),
    "overlap_float16": (0.05, 3.0),
    "overlap_int8": (0.05, 3.0),
    "overlap_int4": (0.05, 3.0),
    "attention": (0.2, 4.0),
    "serial": (0.15, 4.0),
    "overlap": (0.05, 1.0),
    "launch": (0.05, 5.0),
    "dispatch_cycles": (20.0, 20_000.0),
    "step_cycles": (5_000.0, 2_000_000.0),
    "cache_bytes_per_cycle": (2.0, 64.0),
    "near_cache": (0.5, 2.0),
    "cache_share": (0.2, 1.2),
    "page_ns": (1.0, 1000.0),
}
GPU_BOUNDS = {
    "gpu_bandwidth": (0.02, 1.3),
    "gpu_compute": (0.005, 2.0),
    "gpu_attention": (0.001, 2.0),
    "gpu_item_steps": (0.1, 1000.0),
    "gpu_load_ns": (0.1, 10_000.0),
    "gpu_overlap": (0.05, 1.0),
    "gpu_start": (0.05, 20.0),
    "gpu_dispatch": (0.001, 5.0),
}
BOUNDS = {**CPU_BOUNDS, **GPU_BOUNDS}
_PRIOR = 0.02  # a factor e times its default weighs like a point that is 2 % off
_ENOUGH = 1e-4  # the fit ends when it gains less than this share of its cost, or moves its factors by less
LEAST_POINTS = 8
_PAUSE_NS = 60.0  # of page_ns, where streams wait at each page


@dataclass(frozen=True)
class Point:
    """One measured step.

    Attributes:
        spec: the model.
        cluster: where it ran.
        threads: on how many cores.
        n, past: new tokens, and tokens before them.
        seconds: median time.
        bandwidth_gb_per_s: read by as many threads, beside it.
        stable: enough samples agreed.
        chunk: 0 is one step of n tokens; otherwise a prompt of n tokens in chunks of that many, with one row of logits.
    """

    spec: DecoderSpec
    cluster: str
    threads: int
    n: int
    past: int
    seconds: float
    bandwidth_gb_per_s: float
    stable: bool = True
    chunk: int = 0


@dataclass(frozen=True)
class Residual:
    """A point and what the fitted model says of it."""

    point: Point
    predicted_s: float
    held_out: bool

    @property
    def error(self) -> float:
        """The relative error: predicted / measured - 1."""
        return self.predicted_s / self.point.seconds - 1.0


@dataclass(frozen=True)
class Fit:
    """Fitted factors, the names of those that the points said something of, and every residual.

    Residuals are of unstable points too.
    """

    factors: Factors
    residuals: tuple[Residual, ...]
    names: tuple[str, ...] = ()

    def error(self, held_out: bool) -> tuple[float, float]:
        """(median, worst) relative error of the stable points, fitted or held out.

        Raises:
            UserError: there are none.
        """
        errors = [abs(r.error) for r in self.residuals if r.held_out == held_out and r.point.stable]
        if not errors:
            raise UserError(f"no stable point was {'held out of' if held_out else 'in'} the fit")
        return median(errors), max(errors)


def predict_point(board: Board, factors: Factors, point: Point) -> float:
    """Seconds of a point, with the bandwidth measured beside it as its cluster's, or as the GPU's for cluster "gpu"."""
    return _Counted(board, point).seconds(factors)


class _Counted:
    """A point with all that factors do not change: the board beside it, its operators, the cycles of its kernels."""

    def __init__(self, board: Board, point: Point) -> None:
        self._processor: Processor
        if point.cluster == "gpu":
            if board.gpu is None:
                raise UserError(f"board {board.name} has no GPU, but a point was measured on one")
            gpu = replace(board.gpu, bandwidth_gb_per_s=point.bandwidth_gb_per_s)
            self._board, self._processor = replace(board, gpu=gpu), GpuSlice(gpu, board.clusters[0])
        else:
            clusters = tuple(_beside(c, point) if c.name == point.cluster else c for c in board.clusters)
            self._board = replace(board, clusters=clusters)
            self._processor = CpuSlice(((self._board.cluster(point.cluster), point.threads),))
        if point.chunk:
            self._steps = prompt_units(point.spec, point.n, point.past, point.chunk)
        else:
            self._steps = [step_units(point.spec, point.n, point.past)]
        self._cycles: dict[tuple[int, int, int], tuple[Op, Core, Cycles]] = {}

    def seconds(self, factors: Factors) -> float:
        return Roofline(self._board, factors, self._cycles).chunks(self._steps, self._processor).total_s


def _beside(cluster: Cluster, point: Point) -> Cluster:
    """The cluster with the bandwidth measured beside a point, by one thread or by several."""
    one, every = cluster.bandwidth_one_thread_gb_per_s, cluster.bandwidth_all_threads_gb_per_s
    if point.threads == 1:
        one, every = point.bandwidth_gb_per_s, max(every, point.bandwidth_gb_per_s)
    else:
        one, every = min(one, point.bandwidth_gb_per_s), point.bandwidth_gb_per_s
    return replace(
        cluster,
        bandwidth_one_thread_gb_per_s=one,
        bandwidth_all_threads_gb_per_s=every,
        bandwidth_by_threads_gb_per_s=(),
        bandwidth_one_thread_rate="read",
        bandwidth_all_threads_rate="read",
    )


def fit(board: Board, points: Sequence[Point], held_out: Callable[[Point], bool], start: Factors | None = None) -> Fit:
    """Fit the factors of what was measured to the stable points that are not held out: the CPU's, then the GPU's.

    Raises:
        UserError: too few points.
    """
    used = [p for p in points if p.stable and not held_out(p)]
    if len(used) < LEAST_POINTS:
        raise UserError(f"{len(used)} stable points are too few to fit the factors; at least {LEAST_POINTS}")
    factors, names = start or Factors(), list[str]()
    for bounds, gpu in ((CPU_BOUNDS, False), (GPU_BOUNDS, True)):
        if here := [p for p in used if (p.cluster == "gpu") == gpu]:
            told = [name for name in bounds if name not in _untold(here)]
            factors = _fit(board, here, factors, told)
            names += told
    residuals = tuple(Residual(p, predict_point(board, factors, p), held_out(p)) for p in points)
    return Fit(factors, residuals, tuple(names))


def _untold(points: Sequence[Point]) -> set[str]:
    """Factors of formats that the points do not tell from those of all: of absent formats, and of the main one.

    Where there are weights of 32 bits, they are what the others are compared with.
    """
    sizes: dict[str | None, float] = {}
    for spec in {id(p.spec): p.spec for p in points}.values():
        for op in spec.operators:
            if op.kind == "linear":
                kind = weights_kind(op.format)
                sizes[kind] = sizes.get(kind, 0) + op.matrix_bytes
    main = None if None in sizes else max(sizes, key=lambda kind: sizes[kind])
    told = sizes.keys() - {main}
    return {name for factor, kinds in OF_FORMATS.items() for kind, name in kinds.items() if kind not in told}


def _fit(board: Board, used: Sequence[Point], start: Factors, names: list[str]) -> Factors:
    """The start with the named factors fitted to the points."""
    import numpy as np
    from scipy.optimize import least_squares

    first = [math.log(min(max(getattr(start, n), BOUNDS[n][0]), BOUNDS[n][1])) for n in names]
    prior, counted = np.array(first), [(_Counted(board, p), p.seconds) for p in used]

    def misses(x: np.ndarray) -> np.ndarray:
        factors = _with(start, names, x)
        off = [math.log(point.seconds(factors) / seconds) for point, seconds in counted]
        return np.concatenate([off, _PRIOR * (x - prior)])

    # Streams that pause at pages, or memory that is slower: two minima that look alike from far away. And a cache that
    # starts below what memory gives changes nothing while it stays there.
    changes = [{}, {"page_ns": _PAUSE_NS}]
    if (memory := _memory_bytes_per_cycle(board, used)) > start.cache_bytes_per_cycle:
        changes.append({"page_ns": _PAUSE_NS / 2, "cache_bytes_per_cycle": 2 * memory})
    starts = [[math.log(to[n]) if n in to else x for n, x in zip(names, first, strict=True)] for to in changes]
    low, high = (np.log([BOUNDS[n][i] for n in names]) + (-1e-9 if i == 0 else 1e-9) for i in (0, 1))
    settings = {"bounds": (low, high), "loss": "soft_l1", "f_scale": 0.1, "ftol": _ENOUGH, "xtol": _ENOUGH}
    solutions = [least_squares(misses, x, **settings) for x in starts]
    solved = min(solutions, key=lambda s: float(s.cost))
    return _with(start, names, solved.x)


def _memory_bytes_per_cycle(board: Board, points: Sequence[Point]) -> float:
    """The most that one core read from memory beside a point; 0 of a GPU's points."""
    rates = [
        p.bandwidth_gb_per_s / p.threads / board.cluster(p.cluster).frequency_ghz for p in points if p.cluster != "gpu"
    ]
    return max(rates, default=0.0)


def _with(start: Factors, names: Sequence[str], x: Iterable[float]) -> Factors:
    values: dict[str, Any] = {name: float(math.exp(value)) for name, value in zip(names, x, strict=True)}
    return replace(start, **values)
