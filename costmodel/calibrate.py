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

from costmodel.factors import Factors
from costmodel.roofline import CpuSlice, Roofline
from costmodel.shape import DecoderShape
from targets.device import Board
from targets.errors import UserError

BOUNDS = {  # factor -> (lowest, highest) the fit may choose
    "bandwidth": (0.3, 1.1),
    "compute": (0.5, 3.0),
    "attention": (0.5, 4.0),
    "serial": (0.3, 4.0),
    "overlap": (0.3, 1.0),
    "launch": (0.1, 5.0),
    "dispatch_cycles": (100.0, 20_000.0),
    "step_cycles": (5_000.0, 2_000_000.0),
    "cache_bytes_per_cycle": (2.0, 32.0),
}
_PRIOR = 0.02  # a factor e times its default weighs like a point that is 2 % off
_LEAST_POINTS = 8


@dataclass(frozen=True)
class Point:
    """One measured step.

    Attributes:
        shape: the model.
        cluster: where it ran.
        threads: on how many cores.
        n, past: new tokens, and tokens before them.
        seconds: median time.
        bandwidth_gb_per_s: read by as many threads, beside it.
        stable: enough samples agreed.
    """

    shape: DecoderShape
    cluster: str
    threads: int
    n: int
    past: int
    seconds: float
    bandwidth_gb_per_s: float
    stable: bool = True


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
    """Fitted factors and every residual, those of unstable points too."""

    factors: Factors
    residuals: tuple[Residual, ...]

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
    """Seconds of a point, with the bandwidth measured beside it as its cluster's."""
    clusters = tuple(
        replace(
            c,
            bandwidth_one_thread_gb_per_s=point.bandwidth_gb_per_s / (1 if point.threads == 1 else point.threads),
            bandwidth_all_threads_gb_per_s=point.bandwidth_gb_per_s,
        )
        if c.name == point.cluster
        else c
        for c in board.clusters
    )
    here = replace(board, clusters=clusters)
    cores = CpuSlice(((here.cluster(point.cluster), point.threads),))
    return Roofline(here, factors).step(point.shape, cores, point.n, point.past).total_s


def fit(board: Board, points: Sequence[Point], held_out: Callable[[Point], bool], start: Factors | None = None) -> Fit:
    """Fit the factors to the stable points that are not held out.

    Raises:
        UserError: too few points.
    """
    import numpy as np
    from scipy.optimize import least_squares

    start = start or Factors()
    used = [p for p in points if p.stable and not held_out(p)]
    if len(used) < _LEAST_POINTS:
        raise UserError(f"{len(used)} stable points are too few to fit {len(BOUNDS)} factors; at least {_LEAST_POINTS}")
    names = list(BOUNDS)
    first = [math.log(min(max(getattr(start, n), BOUNDS[n][0]), BOUNDS[n][1])) for n in names]
    prior = np.array(first)

    def misses(x: np.ndarray) -> np.ndarray:
        factors = _with(start, names, x)
        off = [math.log(predict_point(board, factors, p) / p.seconds) for p in used]
        return np.concatenate([off, _PRIOR * (x - prior)])

    low, high = (np.log([BOUNDS[n][i] for n in names]) + (-1e-9 if i == 0 else 1e-9) for i in (0, 1))
    solved = least_squares(misses, first, bounds=(low, high), loss="soft_l1", f_scale=0.1)
    factors = _with(start, names, solved.x)
    residuals = tuple(Residual(p, predict_point(board, factors, p), held_out(p)) for p in points)
    return Fit(factors, residuals)


def _with(start: Factors, names: Sequence[str], x: Iterable[float]) -> Factors:
    values: dict[str, Any] = {name: float(math.exp(value)) for name, value in zip(names, x, strict=True)}
    return replace(start, **values)
