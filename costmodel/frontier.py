"""The placements of a model that are worth having, on some processors and for a mix of steps.

For one weighting of steps (`a` steps of n tokens, `b` of m tokens) the enumeration sees every placement, so what it
returns is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from costmodel.early_exit import first_cuts
from costmodel.model_costs import ModelCosts
from costmodel.place import Place
from costmodel.placement import Placement, Segment, tied_twice
from costmodel.processor import CpuSlice, GpuSlice, Processor

Cuts = tuple[tuple[str, int, int], ...]  # family, first unit, end


def frontier(
    costs: ModelCosts,
    steps: Sequence[tuple[float, int]],
    slices: Sequence[Processor],
    place: Place | None = None,
    exits: tuple[ModelCosts, Sequence[tuple[float, int]]] | None = None,
) -> list[tuple[float, int, Placement]]:
    """The placements worth having for a mix of steps: (seconds, bytes over the weights, placement), fastest first.

    Every placement with at most two borders is looked at; kept are those that no other one beats in both time and
    memory. Equals go to the one with fewer borders, then to the board's order of processors.

    Args:
        costs: of the model.
        steps: (times, n) of the steps that count.
        slices: the processors to choose from.
        place: the rule, where it is given.
        exits: costs and steps of the model's own first layers, which run where it does and count with it.
    """
    if place is not None:
        return _given(costs, place, steps, slices)
    families, units = list(dict.fromkeys(p.family for p in slices)), len(costs.spec.units)
    table, border = _tables(costs, steps, slices)
    own = None if exits is None else (len(exits[0].spec.units), *_tables(exits[0], exits[1], slices))
    best: dict[int, tuple[float, int, Cuts]] = {}
    for segments in _cuts(families, units):
        time = _cut_s(segments, table, border)
        if own is not None:
            time += _cut_s(first_cuts(segments, units, own[0]), *own[1:])
        more = tied_twice(costs.spec, segments[0][0], segments[-1][0])
        if more not in best or (time, len(segments)) < best[more][:2]:
            best[more] = (time, len(segments), segments)
    kept: list[tuple[float, int, Placement]] = []
    for more, (time, _, segments) in sorted(best.items(), key=lambda item: (item[1][0], item[0])):
        if not kept or more < kept[-1][1]:
            made = tuple(Segment(table[f][start][end][1], start, end) for f, start, end in segments)
            kept.append((time, more, Placement(made)))
    return kept


def _given(
    costs: ModelCosts, place: Place, steps: Sequence[tuple[float, int]], slices: Sequence[Processor]
) -> list[tuple[float, int, Placement]]:
    """A rule on the fastest of the slices."""
    gpu = next((p for p in slices if isinstance(p, GpuSlice)), None)
    found = []
    for cores in [p for p in slices if isinstance(p, CpuSlice)]:
        placement = costs.placed(place, cores, gpu)
        time = sum(times * costs.step_s(placement, n) for times, n in steps)
        found.append((time, tied_twice(costs.spec, placement.families[0], placement.families[-1]), placement))
    return [min(found, key=lambda f: f[0])]


def _tables(
    costs: ModelCosts, steps: Sequence[tuple[float, int]], slices: Sequence[Processor]
) -> tuple[dict[str, list[list[tuple[float, Processor]]]], dict[tuple[str, str], float]]:
    """What segments take, by family, and borders between two families."""
    families = list(dict.fromkeys(p.family for p in slices))
    table = {family: _segment_costs(costs, [p for p in slices if p.family == family], steps) for family in families}
    return table, {(a, b): _border(costs, a, b, slices, steps) for a in families for b in families if a != b}


def _segment_costs(
    costs: ModelCosts, slices: Sequence[Processor], steps: Sequence[tuple[float, int]]
) -> list[list[tuple[float, Processor]]]:
    """[start][end] -> (seconds, slice): a segment of units on the fastest of the slices of a family."""
    units = len(costs.spec.units)
    best: list[list[tuple[float, Processor]]] = [[] for _ in range(units)]
    for processor in slices:
        prefix = [0.0] * (units + 1)
        for times, n in steps:
            for i, estimate in enumerate(costs.units(processor, n)):
                prefix[i + 1] += times * estimate.total_s
        for i in range(units):
            prefix[i + 1] += prefix[i]
        call = costs.roofline.step_overhead(processor).total_s * sum(times for times, _ in steps)
        for start in range(units):
            row = best[start]
            if not row:
                row.extend([(float("inf"), processor)] * (units + 1))
            for end in range(start + 1, units + 1):
                cost = prefix[end] - prefix[start] + call
                if cost < row[end][0]:
                    row[end] = (cost, processor)
    return best


def _border(
    costs: ModelCosts, a: str, b: str, slices: Sequence[Processor], steps: Sequence[tuple[float, int]]
) -> float:
    first = {p.family: p for p in reversed(slices)}
    return sum(times * costs.roofline.border(first[a], first[b], n * costs.spec.border).total_s for times, n in steps)


def _cut_s(
    cuts: Sequence[tuple[str, int, int]],
    table: Mapping[str, list[list[tuple[float, Processor]]]],
    border: Mapping[tuple[str, str], float],
) -> float:
    time, before = 0.0, ""
    for family, start, end in cuts:
        time += table[family][start][end][0]
        if before:
            time += border[before, family]
        before = family
    return time


_CUTS: dict[tuple[tuple[str, ...], int], list[Cuts]] = {}


def _cuts(families: Sequence[str], units: int) -> list[Cuts]:
    """All ways to cut a row of units into one to three segments on processors that differ between neighbours."""
    key = (tuple(families), units)
    if key not in _CUTS:
        whole = [((f, 0, units),) for f in families]
        pairs = [((f, 0, i), (g, i, units)) for f in families for g in families if f != g for i in range(1, units)]
        triples = [
            ((f, 0, i), (g, i, j), (h, j, units))
            for f in families
            for g in families
            if f != g
            for h in families
            if g != h
            for i in range(1, units - 1)
            for j in range(i + 1, units)
        ]
        _CUTS[key] = [*whole, *pairs, *triples]
    return _CUTS[key]
