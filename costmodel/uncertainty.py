"""How sure a prediction is: each number is moved by what its origin allows, and the effects are added as squares.

A number with a range may lie anywhere in it; of the others a measured one may be 5 % off, one of a data sheet
10 % (silicon under load keeps less), an assumed one 30 %. The factors of CPU kernels are 10 % sure, the arithmetic of
those for AArch64, which ran under emulation only, 30 %, those of GPU kernels, which nobody measured, 40 %; factors that
a calibration of this board fitted are 5 % sure, overheads 20 %; others may be half of their defaults, which are of one
x86-64 core, or two to four times as many, by core (`overhead_range`). An acceptance that is assumed may be 0.15 off,
one that the user states 0.05; one that was measured has its own bounds. In logarithms, so that an interval is a factor
up and down; terms are taken as independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from costmodel.factors import overhead_range
from costmodel.processor import CpuSlice, GpuSlice, Processor
from costmodel.question import Variant
from costmodel.schema.plan import Influence
from costmodel.search import Search
from costmodel.speculative import Acceptance
from targets.device import Board

KIND_ERROR = {"measured": 0.05, "datasheet": 0.10, "assumed": 0.30}
_KERNELS = 0.10
_EMULATED = 0.30
_UNMEASURED = 0.40
ALPHA_ERROR = {"assumed": 0.15, "given": 0.05}
_SLOWER = ("compute",)  # factors that multiply a time whose number in the board is a rate
_RATES = {"one_thread": "bandwidth_one_thread", "all_threads": "bandwidth"}
_FITTED, _FITTED_OVERHEADS = 0.05, 0.20


@dataclass(frozen=True)
class Interval:
    """A range of tokens/s and what makes it wide, largest first."""

    low: float
    high: float
    influences: tuple[Influence, ...]


def interval(search: Search, variant: Variant, alphas: tuple[Acceptance, Acceptance] | None = None) -> Interval:
    """The range of a variant's speed; `alphas` are the acceptance's own bounds, where it was measured."""
    found, below, above = [], 0.0, 0.0

    def count(number: str, error: float, speeds: list[float]) -> None:
        nonlocal below, above
        effects = [math.log(speed / variant.tokens_per_s) for speed in speeds]
        below, above = below + min(*effects, 0.0) ** 2, above + max(*effects, 0.0) ** 2
        found.append(Influence(number, error, max(map(abs, effects))))

    for n in numbers(search.question.board, variant):
        count(n.number, n.error, [_moved(search, variant, n.factor, math.exp(by)) for by in (-n.down, n.up)])
    if alphas is not None and variant.gamma:
        count("acceptance", 0.0, [_priced(search, variant, alpha).tokens_per_s for alpha in alphas])
    ranked = tuple(sorted((i for i in found if i.effect > 0.005), key=lambda i: -i.effect))
    speed = variant.tokens_per_s
    return Interval(speed * math.exp(-math.sqrt(below)), speed * math.exp(math.sqrt(above)), ranked)


def alpha_bounds(alpha: Acceptance, kind: str) -> tuple[Acceptance, Acceptance]:
    """The range of an acceptance that is "assumed" or "given"."""
    error = ALPHA_ERROR[kind]
    if isinstance(alpha, (int, float)):
        return max(0.0, alpha - error), min(1.0, alpha + error)
    return [max(0.0, a - error) for a in alpha], [min(1.0, a + error) for a in alpha]


class Intervals:
    """The intervals of one search's variants, each computed once; why a variant was chosen does not count."""

    def __init__(self, search: Search, alphas: tuple[Acceptance, Acceptance] | None = None) -> None:
        """Both as in `interval`."""
        self._search, self._alphas = search, alphas
        self._found: dict[tuple[object, ...], Interval] = {}

    def __call__(self, variant: Variant) -> Interval:
        """The range of a variant's speed."""
        models = (id(variant.target), variant.target_placement, id(variant.draft), variant.draft_placement)
        key = (variant.mode, variant.gamma, *models)  # the search keeps the models, so that an id stays theirs
        if key not in self._found:
            self._found[key] = interval(self._search, variant, self._alphas)
        return self._found[key]


def used_processors(variant: Variant) -> list[Processor]:
    """The processors of both models, each once."""
    placements = [variant.target_placement, variant.draft_placement]
    found = {s.processor.name: s.processor for p in placements if p is not None for s in p.segments}
    return list(found.values())


@dataclass(frozen=True)
class Unsure:
    """A number that a variant rests on.

    Attributes:
        number: its path in the board, or the factor's name.
        factor: what is scaled in its place.
        down, up: how far the factor may be below and above what it is, as logarithms.
    """

    number: str
    factor: str
    down: float
    up: float

    @property
    def error(self) -> float:
        """The relative error at the farther end."""
        return 1 - math.exp(-max(self.down, self.up))


def numbers(board: Board, variant: Variant) -> list[Unsure]:
    """Each number a variant rests on."""
    terms: dict[str, Unsure] = {}
    fitted = {name for name in board.factors if board.provenance[f"factors.{name}"].kind == "measured"}

    def add(path: str, factor: str, more: float) -> None:
        more = min(more, _FITTED) if factor in fitted else more
        down, up = (_with_kernels(error, more) for error in number_errors(board, path))
        if factor in _SLOWER:  # a higher rate makes the factor of the time smaller
            down, up = up, down
        found = Unsure(path, factor, down, up)
        if factor not in terms or found.error > terms[factor].error:
            terms[factor] = found

    for processor in used_processors(variant):
        if isinstance(processor, CpuSlice):
            for cluster, threads in processor.parts:
                rate = "one_thread" if threads == 1 else "all_threads"
                path = f"clusters.{cluster.name}"
                known = "by_threads" if cluster.bandwidth_by_threads_gb_per_s else rate
                kernels = 0.0 if getattr(cluster, f"bandwidth_{known}_rate") == "decoder" else _KERNELS
                add(f"{path}.bandwidth_{known}_gb_per_s", _RATES[rate], kernels)
                arithmetic = _EMULATED if cluster.core.isa == "aarch64" else _KERNELS
                add(f"{path}.core.fp32_flops_per_cycle", "compute", arithmetic)
                add(f"{path}.launch_overhead_s", "launch", 0.0)
        if isinstance(processor, GpuSlice):
            add("gpu.bandwidth_gb_per_s", "gpu_bandwidth", _UNMEASURED)
            add("gpu.fp32_gflops", "gpu_compute", _UNMEASURED)
            add("gpu.launch_overhead_s", "gpu_dispatch", _UNMEASURED)
    if variant.mode == "overlapped":
        add("dram.peak_bandwidth_gb_per_s", "dram_together", _KERNELS)
    found = list(terms.values())
    hand_over = ("hand_over_cycles",) if variant.mode == "overlapped" else ()
    turns = ("turn_cycles", "draft_turn_cycles", "verify_turn_cycles") if variant.draft is not None else ()
    least, most = _overheads(board, variant)
    for name in ("dispatch_cycles", "step_cycles", "round_cycles", *turns, *hand_over):
        off = -math.log1p(-_FITTED_OVERHEADS)
        down, up = (off, off) if name in fitted else (-math.log(least), math.log(most))
        found.append(Unsure(f"factor {name}", name, down, up))
    return found


def _overheads(board: Board, variant: Variant) -> tuple[float, float]:
    """Least and most times the default overheads on the cores that are used; the loop runs on the first cluster."""
    used = [cluster for p in used_processors(variant) if isinstance(p, CpuSlice) for cluster, _ in p.parts]
    ranges = [overhead_range(cluster.core) for cluster in (board.clusters[0], *used)]
    return min(least for least, _ in ranges), max(most for _, most in ranges)


def number_errors(board: Board, path: str) -> tuple[float, float]:
    """Relative errors of a number of the board, downwards and upwards: to the ends of its range, else by its kind."""
    origin = board.provenance[path]
    if origin.range is None:
        return KIND_ERROR[origin.kind], KIND_ERROR[origin.kind]
    low, high = origin.range
    value = float(board.number(path))
    return 1 - low / value, 1 - value / high


def _with_kernels(error: float, more: float) -> float:
    """Both errors together, as a logarithm."""
    return -math.log1p(-min(0.99, math.hypot(error, more)))


def _moved(search: Search, variant: Variant, factor: str, scale: float) -> float:
    """Speed with one factor scaled."""
    factors = replace(search.question.factors, **{factor: getattr(search.question.factors, factor) * scale})
    moved = search.with_factors(factors)
    return _priced(moved, variant).tokens_per_s


def _priced(search: Search, variant: Variant, alpha: Acceptance | None = None) -> Variant:
    return search.price(
        *(variant.mode, variant.target, variant.target_placement, variant.draft, variant.draft_placement),
        variant.gamma,
        alpha,
    )
