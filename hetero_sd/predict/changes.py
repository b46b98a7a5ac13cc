"""What would change a verdict: each input is moved until another way to run is as fast, the others kept.

The ways are the kinds of variants with whole models, and the chosen one as it is; threads and draft lengths are chosen
again at each value. An input's leverage is how
little it has to move, counted in its own error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from costmodel.decoder import DecoderSpec
from costmodel.model_costs import ModelCosts
from costmodel.placement import Placement
from costmodel.question import Decision, Variant
from costmodel.roofline import CpuSlice, GpuSlice
from costmodel.schema.plan import OVERLAPPED, TARGET_ONLY
from costmodel.search import Search
from costmodel.speculative import Acceptance, sequential_round
from costmodel.uncertainty import numbers, used_processors
from hetero_sd.predict.overlapped_ways import OverlappedWays

MOST = 3
_SPAN = 8.0  # an input is moved to an eighth and to eight times what it is
_STEPS = 4  # of each direction, to find where the verdict flips
_HALVINGS = 10
_TRIES = 4
_BESIDE = 0.02  # of a move
_MOST_GAMMA = 8
_ALPHA_STEP = 0.05


class Verdict(Protocol):
    """Whether the chosen kind is the fastest after a move, and the fastest other one."""

    def __call__(self, move: float, /, every: bool = False) -> tuple[bool, Variant | None]:
        """Judge; `every` looks at all overlapped rounds."""


@dataclass(frozen=True)
class Change:
    """An input and where the verdict flips.

    Attributes:
        name: for people.
        unit: of its values: "GB/s", "us", "x" for times, or "" for shares and probabilities.
        now: its value.
        flips_at: the nearest value at which another way to run is as fast, or None in the range.
        low, high: the range that was looked at.
        to: the other way, in a few words; "" where nothing flips.
        errors: how many of its errors lie between `now` and `flips_at`; infinite where nothing flips.
    """

    name: str
    unit: str
    now: float
    flips_at: float | None
    low: float
    high: float
    to: str
    errors: float


@dataclass(frozen=True)
class _Input:
    """One input: its name and unit, what it is now, the factors that it scales, and its relative error."""

    name: str
    unit: str
    now: float
    factors: tuple[str, ...]
    error: float
    on_gpu: bool = False


def what_would_change(
    search: Search, decision: Decision, alphas: tuple[Acceptance, Acceptance] | None
) -> tuple[Change, ...]:
    """The inputs with the most leverage on a decision, those that flip it first."""
    candidates = _one_of_each(decision)
    if len(candidates) < 2 and decision.best.mode != OVERLAPPED:
        return ()
    meanwhile = OverlappedWays(search)
    found = [_moved(search, candidates, meanwhile, given) for given in _inputs(search, candidates)]
    if isinstance(search.question.alpha, float) and any(v.draft is not None for v in candidates):
        found.append(_moved_alpha(search, candidates, meanwhile, alphas))
    return tuple(sorted(found, key=lambda c: c.errors)[:MOST])


def kind(variant: Variant) -> tuple[object, ...]:
    """What a verdict says: draft or not, in which formats, and on which processors."""
    drafter = variant.draft_placement
    families = variant.target_placement.families, () if drafter is None else drafter.families
    return (variant.mode, variant.target.name, *families)


def _one_of_each(decision: Decision) -> list[Variant]:
    """The fastest variant of each kind that takes turns with whole models, the chosen one first, whatever it is."""
    found = {kind(decision.best): decision.best}
    for variant in decision.leading:
        drafter = variant.draft_placement
        whole = variant.target_placement.whole and (drafter is None or drafter.whole)
        if whole and variant.mode != OVERLAPPED:
            found.setdefault(kind(variant), variant)
    return list(found.values())


def _inputs(search: Search, candidates: Sequence[Variant]) -> list[_Input]:
    board, f = search.question.board, search.question.factors
    errors: dict[str, float] = {}
    for variant in candidates:
        for n in numbers(board, variant):
            errors[n.factor] = max(n.error, errors.get(n.factor, 0.0))
    found: list[_Input] = []
    used = [p for v in candidates for p in used_processors(v)]
    cpu = next((p for p in used if isinstance(p, CpuSlice)), None)
    if cpu is not None:
        cluster, threads = cpu.parts[0]
        reached = search.roofline.reached_gb_per_s(cluster, threads)
        error = max(errors.get(name, 0.0) for name in ("bandwidth", "bandwidth_one_thread"))
        factors = ("bandwidth", "bandwidth_one_thread")
        found.append(_Input(f"DRAM bandwidth that kernels reach on {cpu.name}", "GB/s", reached, factors, error))
        kernels = ("compute", "attention", "serial")
        found.append(_Input("time of the CPU kernels' arithmetic", "x", 1.0, kernels, errors["compute"]))
    if any(isinstance(p, GpuSlice) for p in used) and board.gpu is not None:
        gpu = board.gpu
        reads, flops = f.gpu_bandwidth * gpu.bandwidth_gb_per_s, f.gpu_compute * gpu.fp32_gflops
        found.append(
            _Input("bandwidth of GPU kernels", "GB/s", reads, ("gpu_bandwidth",), errors["gpu_bandwidth"], True)
        )
        rates = ("gpu_compute", "gpu_attention")
        found.append(_Input("arithmetic of GPU kernels", "GFLOP/s", flops, rates, errors["gpu_compute"], True))
        dispatch_us = 1e6 * f.gpu_dispatch * gpu.launch_overhead_s
        error = errors["gpu_dispatch"]
        found.append(_Input("dispatch of a GPU kernel", "us", dispatch_us, ("gpu_dispatch",), error, True))
    return found


def _moved(search: Search, candidates: Sequence[Variant], meanwhile: OverlappedWays, given: _Input) -> Change:
    def verdict(exponent: float, every: bool = False) -> tuple[bool, Variant | None]:
        q = search.question
        scaled = {name: getattr(q.factors, name) * math.exp(exponent) for name in given.factors}
        return _verdict(search, search.with_factors(replace(q.factors, **scaled)), given, candidates, meanwhile, every)

    end = math.log(_SPAN)
    flip, to = _nearest(verdict, [end * i / _STEPS for i in range(1, _STEPS + 1)])
    error = -math.log1p(-given.error)
    low, high = given.now / _SPAN, given.now * _SPAN
    if flip is None:
        return Change(given.name, given.unit, given.now, None, low, high, "", math.inf)
    at = given.now * math.exp(flip)
    return Change(given.name, given.unit, given.now, at, low, high, to, abs(flip) / error)


def _moved_alpha(
    search: Search,
    candidates: Sequence[Variant],
    meanwhile: OverlappedWays,
    alphas: tuple[Acceptance, Acceptance] | None,
) -> Change:
    now = search.question.alpha
    assert isinstance(now, float)
    steps = [_ALPHA_STEP * i for i in range(1, math.ceil(1 / _ALPHA_STEP) + 1)]

    def verdict(by: float, every: bool = False) -> tuple[bool, Variant | None]:
        moved = search.with_alpha(min(1.0, max(0.0, now + by)))
        return _verdict(moved, moved, None, candidates, meanwhile, every)

    flip, to = _nearest(verdict, steps)
    if flip is None:
        return Change("acceptance", "", now, None, 0.0, 1.0, "", math.inf)
    ends = (now, now) if alphas is None else tuple(a for a in alphas if isinstance(a, float))
    error = max((abs(a - now) for a in ends), default=0.0)
    at = min(1.0, max(0.0, now + flip))
    return Change("acceptance", "", now, at, 0.0, 1.0, to, abs(flip) / error if error else math.inf)


def _verdict(
    search: Search,
    moved: Search,
    given: _Input | None,
    candidates: Sequence[Variant],
    meanwhile: OverlappedWays,
    every: bool,
) -> tuple[bool, Variant | None]:
    """Whether the chosen kind is the fastest, and the fastest other one; None where there is no other.

    With `every` all overlapped rounds that may be faster are priced, else those near the last best.
    """

    def costs_of(spec: DecoderSpec, placement: Placement) -> ModelCosts:
        on_gpu = [isinstance(s.processor, GpuSlice) for s in placement.segments]
        touched = given is not None and (any(on_gpu) if given.on_gpu else not all(on_gpu))
        return (moved if touched else search).costs(spec)

    chosen = kind(candidates[0])
    ways = [(_fastest(search, costs_of, v), v) for v in candidates if v.mode != OVERLAPPED]
    turns = max((speed for speed, _ in ways), default=0.0)
    beside = list(meanwhile.fastest(moved, turns))
    if every and meanwhile.look_at_all(moved, max(turns, *(v.tokens_per_s for v in beside), 0.0)):
        beside = list(meanwhile.fastest(moved, turns))
    ways += [(v.tokens_per_s, v) for v in beside]
    own = max((speed for speed, v in ways if kind(v) == chosen), default=0.0)
    others = [(speed, v) for speed, v in ways if kind(v) != chosen]
    best = max(others, key=lambda way: way[0], default=(0.0, None))
    return own >= best[0], best[1]


def _fastest(search: Search, costs_of: Callable[[DecoderSpec, Placement], ModelCosts], variant: Variant) -> float:
    """Tokens/s of a kind of variant with the threads and the draft length that are fastest."""
    q = search.question
    fixed = () if q.gamma is None else (q.gamma,)
    gammas = (0,) if variant.mode == TARGET_ONLY else fixed or tuple(range(1, _MOST_GAMMA + 1))
    speeds = []
    for target_place, draft_place in _placements(search, variant):
        terms = search.round_costs(variant.target, target_place, variant.draft, draft_place, costs_of)
        speeds += [sequential_round(q.alpha, gamma, terms).tokens_per_s for gamma in gammas]
    return max(speeds)


def _placements(search: Search, variant: Variant) -> Iterator[tuple[Placement, Placement | None]]:
    """A kind's placements with every number of threads; one with borders, and one whose place is given, as it is."""
    q, drafter = search.question, variant.draft_placement
    whole = variant.target_placement.whole and (drafter is None or drafter.whole)
    if not whole or q.target_place is not None or q.draft_place is not None:
        yield variant.target_placement, drafter
        return
    for group in search.groups():
        here = {p.family: p for p in group}
        target = here.get(variant.target_placement.families[0])
        other = None if drafter is None else here.get(drafter.families[0])
        if target is not None and (drafter is None or other is not None):
            spec = variant.draft
            placed = None if other is None or spec is None else search.costs(spec).whole(other)
            yield search.costs(variant.target).whole(target), placed


def _nearest(verdict: Verdict, steps: Sequence[float]) -> tuple[float | None, str]:
    """The smallest move, up or down, at which the verdict is another one, and what is as fast there.

    Both sides of it are looked at once more with every way to run; where one is not as it was said, all is done again
    with what was found there.
    """
    for _ in range(_TRIES):
        move, to = _next_flip(verdict, steps)
        if move is None:
            break
        sides = [verdict(move * (1 + by), True)[0] for by in (-_BESIDE, _BESIDE)]
        if sides[0] != sides[1] and sides[0] == verdict(0.0)[0]:
            break
    return move, to


def _next_flip(verdict: Verdict, steps: Sequence[float]) -> tuple[float | None, str]:
    now, before = verdict(0.0)[0], 0.0
    for step in steps:
        for way in (1.0, -1.0):
            if verdict(way * step)[0] != now:
                low, high = before, step
                for _ in range(_HALVINGS):
                    middle = (low + high) / 2
                    low, high = (middle, high) if verdict(way * middle)[0] == now else (low, middle)
                return way * high, _words(verdict(way * high)[1])
        before = step
    return None, ""


def _words(variant: Variant | None) -> str:
    if variant is None:
        return ""
    where = variant.target_placement.families
    target = f"{variant.target.name} on {' and '.join(dict.fromkeys(where))}"
    if variant.draft is None or variant.draft_placement is None:
        return f"{target} alone"
    draft = f"{variant.draft.name} on {' and '.join(dict.fromkeys(variant.draft_placement.families))}"
    return f"{target} with {draft} drafting{' meanwhile' * (variant.mode == OVERLAPPED)}"
