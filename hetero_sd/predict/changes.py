"""What would change a verdict: each input is moved until another way to run is as fast, the others kept.

The ways are the kinds of variants with whole models, and the chosen one as it is; threads and draft lengths are chosen
again at each value. A way that ties with the chosen one must gain more than a tie allows. An input's leverage is how
little it has to move, counted in its own error.

A GPU that waits for a measurement has one input of its own: the one that decides first whether it would be faster than
the cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from costmodel.cpu_reads import reached_gb_per_s
from costmodel.decoder import DecoderSpec
from costmodel.model_costs import ModelCosts
from costmodel.placement import Placement
from costmodel.processor import CpuSlice, GpuSlice
from costmodel.question import Decision, Variant
from costmodel.schema.plan import OVERLAPPED
from costmodel.search import Search
from costmodel.speculative import Acceptance
from costmodel.ties import end_of_tie
from costmodel.uncertainty import numbers, used_processors
from costmodel.unmeasured_gpu import uses_gpu
from hetero_sd.compile.place import place_rule
from hetero_sd.predict.flips import Judged, nearest_flip
from hetero_sd.predict.overlapped_ways import OverlappedWays
from hetero_sd.predict.turn_ways import fastest_in_turns, kind, one_of_each

MOST = 3
_SPAN = 8.0  # an input is moved to an eighth and to eight times what it is
_STEPS = 4  # of each direction, to find where the verdict flips
_ALPHA_STEP = 0.05


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
        ends_tie: `to` is the way that ties with the chosen one now.
        waits: it is an input of a GPU that waits for a measurement, and `now` is what is predicted.
        place: the --place of `to` there.
        already: `to` is predicted to be faster than the chosen way now.
    """

    name: str
    unit: str
    now: float
    flips_at: float | None
    low: float
    high: float
    to: str
    errors: float
    ends_tie: bool = False
    waits: bool = False
    place: str = ""
    already: bool = False


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
    candidates = one_of_each(decision)
    if len(candidates) < 2 and decision.best.mode != OVERLAPPED:
        return ()
    chosen = kind(decision.best)
    judge = _Judge(search, decision, candidates, lambda variant: kind(variant) == chosen)
    found = [_moved(judge, given) for given in _inputs(search, candidates)]
    if isinstance(search.question.alpha, float) and any(v.draft is not None for v in candidates):
        found.append(_moved_alpha(judge, alphas))
    return tuple(sorted(found, key=lambda c: c.errors)[:MOST])


def what_a_gpu_must_reach(search: Search, decision: Decision, on_gpu: Sequence[Variant]) -> Change | None:
    """The input of a waiting GPU that decides first whether a way with it is faster than all without it.

    Args:
        search: prices ways with the GPU and without it.
        decision: made without it.
        on_gpu: ways with it, the fastest first; where there is none, there is no such input.
    """
    if not on_gpu:
        return None
    cores = [v for v in decision.leading if not uses_gpu(v)]
    ways = one_of_each(replace(decision, leading=tuple(cores)))
    ways += one_of_each(replace(decision, best=on_gpu[0], leading=tuple(on_gpu)))
    judge = _Judge(search, decision, ways, lambda variant: not uses_gpu(variant))
    found = [_moved(judge, given, waits=True) for given in _inputs(search, ways) if given.on_gpu]
    already = on_gpu[0].tokens_per_s > decision.best.tokens_per_s
    return replace(min(found, key=lambda change: change.errors), already=already)


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
        reached = reached_gb_per_s(f, cluster, threads)
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


class _Judge:
    """Whether a decision holds after an input was moved."""

    def __init__(
        self, search: Search, decision: Decision, candidates: Sequence[Variant], own: Callable[[Variant], bool]
    ) -> None:
        self.search, self._candidates, self._meanwhile = search, candidates, OverlappedWays(search)
        self._own = own  # whether a way is one that was decided for
        self._tied = None if decision.tied is None else kind(decision.tied)
        self._tie = end_of_tie(decision)

    def judged(self, moved: Search, given: _Input | None, every: bool) -> Judged:
        """By the speeds of `moved`, where `given` touches them; None touches all.

        With `every` all overlapped rounds that may be faster are priced, else those near the last best.
        """

        def costs_of(spec: DecoderSpec, placement: Placement) -> ModelCosts:
            on_gpu = [isinstance(s.processor, GpuSlice) for s in placement.segments]
            touched = given is not None and (any(on_gpu) if given.on_gpu else not all(on_gpu))
            return (moved if touched else self.search).costs(spec)

        search = moved if given is None else self.search
        ways = [(fastest_in_turns(search, costs_of, v), v) for v in self._candidates if v.mode != OVERLAPPED]
        turns = max((speed for speed, _ in ways), default=0.0)
        beside = list(self._meanwhile.fastest(moved, turns))
        if every and self._meanwhile.look_at_all(moved, max(turns, *(v.tokens_per_s for v in beside), 0.0)):
            beside = list(self._meanwhile.fastest(moved, turns))
        ways += [(v.tokens_per_s, v) for v in beside]
        own = max((speed for speed, v in ways if self._own(v)), default=0.0)
        others = [(speed / (self._tie if self.ties(v) else 1.0), v) for speed, v in ways if not self._own(v)]
        best = max(others, key=lambda way: way[0], default=(0.0, None))
        return Judged(own >= best[0], best[1])

    def ties(self, variant: Variant) -> bool:
        """Whether it is of the kind that ties with the chosen one."""
        return kind(variant) == self._tied


def _moved(judge: _Judge, given: _Input, waits: bool = False) -> Change:
    q = judge.search.question

    def verdict(exponent: float, every: bool = False) -> Judged:
        scaled = {name: getattr(q.factors, name) * math.exp(exponent) for name in given.factors}
        return judge.judged(judge.search.with_factors(replace(q.factors, **scaled)), given, every)

    end = math.log(_SPAN)
    flip, to = nearest_flip(verdict, [end * i / _STEPS for i in range(1, _STEPS + 1)])
    error = -math.log1p(-given.error)
    low, high = given.now / _SPAN, given.now * _SPAN
    if flip is None or to is None:
        return Change(given.name, given.unit, given.now, None, low, high, "", math.inf, waits=waits)
    at = given.now * math.exp(flip)
    errors, place = abs(flip) / error, place_rule(to) if waits else ""
    return Change(
        *(given.name, given.unit, given.now, at, low, high, _words(to), errors, judge.ties(to)),
        waits=waits,
        place=place,
    )


def _moved_alpha(judge: _Judge, alphas: tuple[Acceptance, Acceptance] | None) -> Change:
    now = judge.search.question.alpha
    assert isinstance(now, float)
    steps = [_ALPHA_STEP * i for i in range(1, math.ceil(1 / _ALPHA_STEP) + 1)]

    def verdict(by: float, every: bool = False) -> Judged:
        return judge.judged(judge.search.with_alpha(min(1.0, max(0.0, now + by))), None, every)

    flip, to = nearest_flip(verdict, steps)
    if flip is None or to is None:
        return Change("acceptance", "", now, None, 0.0, 1.0, "", math.inf)
    ends = (now, now) if alphas is None else tuple(a for a in alphas if isinstance(a, float))
    error = max((abs(a - now) for a in ends), default=0.0)
    at = min(1.0, max(0.0, now + flip))
    errors = abs(flip) / error if error else math.inf
    return Change("acceptance", "", now, at, 0.0, 1.0, _words(to), errors, judge.ties(to))


def _words(variant: Variant) -> str:
    where = variant.target_placement.families
    target = f"{variant.target.name} on {' and '.join(dict.fromkeys(where))}"
    if variant.draft is None or variant.draft_placement is None:
        return f"{target} alone"
    draft = f"{variant.draft.name} on {' and '.join(dict.fromkeys(variant.draft_placement.families))}"
    return f"{target} with {draft} drafting{' meanwhile' * (variant.mode == OVERLAPPED)}"
