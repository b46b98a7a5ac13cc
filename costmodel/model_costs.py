"""Steps of one model, priced on every processor and for every placement.

For one weighting of steps (`a` steps of n tokens, `b` of m tokens) the enumeration below sees every placement, so what
it returns is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from costmodel.decoder import DecoderSpec
from costmodel.early_exit import first_cuts
from costmodel.estimate import Estimate
from costmodel.place import ATTENTION, EMBEDDING, FFN, HEAD, Part, Place
from costmodel.placement import Placement, Segment, tied_twice
from costmodel.processor import CpuSlice, GpuSlice, Processor, processors
from costmodel.roofline import Roofline
from costmodel.work import Op, step_units
from targets.errors import UserError

Cuts = tuple[tuple[str, int, int], ...]  # family, first unit, end


class ModelCosts:
    """Steps of one model at one context, priced on every processor; results are kept."""

    def __init__(
        self,
        roofline: Roofline,
        spec: DecoderSpec,
        context: int,
        counted: dict[int, list[tuple[Op, ...]]] | None = None,
    ) -> None:
        """Keep what is priced.

        Args:
            roofline: prices it.
            spec: the model.
            context: tokens in the KV cache before the step.
            counted: steps of this model that were counted at this context, by tokens; more are added.
        """
        self.roofline, self.spec, self.context = roofline, spec, context
        self.slices = processors(roofline.board)
        self._units: dict[tuple[str, int, int | None], list[Estimate]] = {}
        self._whole_s: dict[tuple[str, str, int], float] = {}
        self._counted = {} if counted is None else counted

    def units(self, processor: Processor, n: int, rows: int | None = None) -> list[Estimate]:
        """Each unit of a step of n tokens on a processor; `rows` of them beyond the last attention (step_units)."""
        key = (processor.name, n, rows)
        if key not in self._units:
            self._units[key] = self.roofline.units(self.counted(n, rows), processor)
        return self._units[key]

    def counted(self, n: int, rows: int | None = None) -> list[tuple[Op, ...]]:
        """The operators of a step of n tokens, `rows` of them beyond the last attention (step_units)."""
        if rows is not None:
            return step_units(self.spec, n, self.context, 1, rows)
        if n not in self._counted:  # once, because equal layers are recognised by identity
            self._counted[n] = step_units(self.spec, n, self.context)
        return self._counted[n]

    def step(self, placement: Placement, n: int, rows: int | None = None) -> Estimate:
        """A step of n tokens under a placement: units, the call of each segment, borders.

        With `rows` a chunk of a prompt: 1 with a row of logits, cut in the segment with the head; 0 without, up to the
        last attention.
        """
        estimate, before = Estimate(), None
        for segment in placement.segments:
            if rows == 0 and not self._runs(segment, n):
                continue
            if before is None or before.name != segment.processor.name:
                estimate = estimate + self.roofline.step_overhead(segment.processor)
            if before is not None:
                estimate = estimate + self.roofline.border(before, segment.processor, n * self.spec.hidden)
            cut = rows if rows == 0 or segment is placement.segments[-1] else None
            for unit in self.segment_units(segment, n, cut):
                estimate = estimate + unit
            before = segment.processor
        return estimate

    def prompt_chunk_s(self, placement: Placement, tokens: int, fills: bool = False) -> float:
        """Seconds of a chunk of a prompt: the last one, with the logits of one row, or one before it, which `fills`."""
        return self.step(placement, tokens, 0 if fills else 1).total_s

    def _runs(self, segment: Segment, n: int) -> bool:
        """Whether it has anything of a step without results."""
        units = self.counted(n, 0)[segment.start : segment.end]
        return any(segment.part in ("", op.operator.part.kind) for unit in units for op in unit)

    def segment_units(self, segment: Segment, n: int, rows: int | None = None) -> list[Estimate]:
        """The units of a segment in a step of n tokens, or the one part of a layer; `rows` as in `units`."""
        if not segment.part:
            return self.units(segment.processor, n, rows)[segment.start : segment.end]
        key = (segment.processor.name, -n, rows)  # of parts of layers
        if key not in self._units:
            parts: dict[int, list[tuple[Op, ...]]] = {}
            counted = self.counted(n, rows)
            for unit in counted:
                if id(unit) not in parts:
                    ffn = tuple(op for op in unit if op.operator.part.kind == FFN)
                    parts[id(unit)] = [tuple(op for op in unit if op.operator.part.kind != FFN), ffn]
            split = [part for unit in counted for part in parts[id(unit)]]
            self._units[key] = self.roofline.units(split, segment.processor)
        return [self._units[key][2 * segment.start + (segment.part == FFN)]]

    def step_s(self, placement: Placement, n: int) -> float:
        """Seconds of `step`; kept for whole placements."""
        if not placement.whole:
            return self.step(placement, n).total_s
        processor = placement.segments[0].processor
        key = (processor.host.name if isinstance(processor, GpuSlice) else "", processor.name, n)
        if key not in self._whole_s:
            self._whole_s[key] = self.step(placement, n).total_s
        return self._whole_s[key]

    def whole(self, processor: Processor) -> Placement:
        """The model on one processor."""
        return Placement((Segment(processor, 0, len(self.spec.units)),))

    def placed(self, place: Place, cores: CpuSlice | None, gpu: GpuSlice | None) -> Placement:
        """What a rule says, on these processors.

        Raises:
            UserError: the rule names a layer that the model does not have, or a GPU that is not there.
        """
        layers = self.spec.layers
        sides: dict[str, Processor | None] = {"cpu": cores, "gpu": gpu}
        if strange := [name for name in place.processors if name not in sides]:
            raise UserError(f"placement {place.text}: the cost model cannot price {strange[0]!r}, only cpu and gpu")
        if place.kind:
            rows = [(Part(EMBEDDING), ""), *((Part(k, i), k) for i in range(layers) for k in (ATTENTION, FFN))]
            rows.append((Part(HEAD), ""))
        else:
            rows = [(Part(EMBEDDING), ""), *((Part(FFN, i), "") for i in range(layers)), (Part(HEAD), "")]
        segments: list[Segment] = []
        for part, kind in rows:
            processor, unit = sides[place.of(part, layers)], part.unit(layers)
            if processor is None:
                raise UserError(f"placement {place.text}: board {self.roofline.board.name} has no GPU")
            if segments and segments[-1].processor is processor and not kind and not segments[-1].part:
                segments[-1] = replace(segments[-1], end=unit + 1)
            else:
                segments.append(Segment(processor, unit, unit + 1, kind))
        return Placement(tuple(segments))

    def _given(
        self, place: Place, steps: Sequence[tuple[float, int]], slices: Sequence[Processor]
    ) -> list[tuple[float, int, Placement]]:
        """A rule on the fastest of the slices."""
        gpu = next((p for p in slices if isinstance(p, GpuSlice)), None)
        found = []
        for cores in [p for p in slices if isinstance(p, CpuSlice)]:
            placement = self.placed(place, cores, gpu)
            time = sum(times * self.step_s(placement, n) for times, n in steps)
            found.append((time, tied_twice(self.spec, placement.families[0], placement.families[-1]), placement))
        return [min(found, key=lambda f: f[0])]

    def frontier(
        self,
        steps: Sequence[tuple[float, int]],
        slices: Sequence[Processor],
        place: Place | None = None,
        exits: tuple[ModelCosts, Sequence[tuple[float, int]]] | None = None,
    ) -> list[tuple[float, int, Placement]]:
        """The placements worth having for a mix of steps: (seconds, bytes over the weights, placement), fastest first.

        Every placement with at most two borders is looked at; kept are those that no other one beats in both time and
        memory. Equals go to the one with fewer borders, then to the board's order of processors.

        Args:
            steps: (times, n) of the steps that count.
            slices: the processors to choose from.
            place: the rule, where it is given.
            exits: costs and steps of the model's own first layers, which run where it does and count with it.
        """
        if place is not None:
            return self._given(place, steps, slices)
        families, units = list(dict.fromkeys(p.family for p in slices)), len(self.spec.units)
        table, border = self._tables(steps, slices)
        own = None if exits is None else (len(exits[0].spec.units), *exits[0]._tables(exits[1], slices))
        best: dict[int, tuple[float, int, Cuts]] = {}
        for segments in _cuts(families, units):
            time = _cut_s(segments, table, border)
            if own is not None:
                time += _cut_s(first_cuts(segments, units, own[0]), *own[1:])
            more = tied_twice(self.spec, segments[0][0], segments[-1][0])
            if more not in best or (time, len(segments)) < best[more][:2]:
                best[more] = (time, len(segments), segments)
        frontier: list[tuple[float, int, Placement]] = []
        for more, (time, _, segments) in sorted(best.items(), key=lambda item: (item[1][0], item[0])):
            if not frontier or more < frontier[-1][1]:
                made = tuple(Segment(table[f][start][end][1], start, end) for f, start, end in segments)
                frontier.append((time, more, Placement(made)))
        return frontier

    def _tables(
        self, steps: Sequence[tuple[float, int]], slices: Sequence[Processor]
    ) -> tuple[dict[str, list[list[tuple[float, Processor]]]], dict[tuple[str, str], float]]:
        """What segments take, by family, and borders between two families."""
        families = list(dict.fromkeys(p.family for p in slices))
        table = {family: self._segment_costs([p for p in slices if p.family == family], steps) for family in families}
        return table, {(a, b): self._border(a, b, slices, steps) for a in families for b in families if a != b}

    def _segment_costs(
        self, slices: Sequence[Processor], steps: Sequence[tuple[float, int]]
    ) -> list[list[tuple[float, Processor]]]:
        """[start][end] -> (seconds, slice): a segment of units on the fastest of the slices of a family."""
        units = len(self.spec.units)
        best: list[list[tuple[float, Processor]]] = [[] for _ in range(units)]
        for processor in slices:
            prefix = [0.0] * (units + 1)
            for times, n in steps:
                for i, estimate in enumerate(self.units(processor, n)):
                    prefix[i + 1] += times * estimate.total_s
            for i in range(units):
                prefix[i + 1] += prefix[i]
            call = self.roofline.step_overhead(processor).total_s * sum(times for times, _ in steps)
            for start in range(units):
                row = best[start]
                if not row:
                    row.extend([(float("inf"), processor)] * (units + 1))
                for end in range(start + 1, units + 1):
                    cost = prefix[end] - prefix[start] + call
                    if cost < row[end][0]:
                        row[end] = (cost, processor)
        return best

    def _border(self, a: str, b: str, slices: Sequence[Processor], steps: Sequence[tuple[float, int]]) -> float:
        first = {p.family: p for p in reversed(slices)}
        return sum(times * self.roofline.border(first[a], first[b], n * self.spec.hidden).total_s for times, n in steps)


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
