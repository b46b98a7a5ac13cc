"""Where the parts of one model run: at most two borders, priced and enumerated.

A model is a row of units (embedding, layers, head). A placement cuts it into one to three segments; neighbouring
segments run on different processors, each with the thread count that is fastest for it. For one weighting of steps
(`a` steps of n tokens, `b` of m tokens) the enumeration below sees every placement, so what it returns is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.estimate import Estimate
from costmodel.roofline import CpuSlice, GpuSlice, Processor, Roofline, processors
from costmodel.shape import DecoderShape
from costmodel.work import Op, step_units
from targets.device import Cluster


@dataclass(frozen=True)
class Segment:
    """Units `start` to `end` (exclusive) on one processor."""

    processor: Processor
    start: int
    end: int


@dataclass(frozen=True)
class Placement:
    """The segments of one model in order."""

    segments: tuple[Segment, ...]

    @property
    def families(self) -> tuple[str, ...]:
        """Processors without thread counts."""
        return tuple(s.processor.family for s in self.segments)

    @property
    def whole(self) -> bool:
        """No border."""
        return len(self.segments) == 1

    def gpu_bytes(self, shape: DecoderShape) -> int:
        """Bytes of weights that the GPU needs a copy of; a tied matrix is copied with the head or the embedding."""
        sizes = list(shape.unit_bytes)
        copied = 0
        for segment in self.segments:
            if isinstance(segment.processor, GpuSlice):
                copied += sum(sizes[segment.start : segment.end])
                if shape.tied and segment.start == 0 and segment.end < shape.units:
                    copied += shape.embedding.nbytes(shape.hidden, shape.vocab)
        return copied

    def text(self, shape: DecoderShape) -> str:
        """For people: ``gpu``, or ``a76 x4: embedding to layer 11; gpu: layer 12 to head``."""
        if self.whole:
            return self.segments[0].processor.name
        return "; ".join(f"{s.processor.name}: {_units(shape, s.start, s.end)}" for s in self.segments)


def _units(shape: DecoderShape, start: int, end: int) -> str:
    def name(unit: int) -> str:
        return "embedding" if unit == 0 else "head" if unit == shape.units - 1 else f"layer {unit - 1}"

    return name(start) if end == start + 1 else f"{name(start)} to {name(end - 1)}"


class ModelCosts:
    """Steps of one model at one context, priced on every processor; results are kept."""

    def __init__(self, roofline: Roofline, shape: DecoderShape, context: int) -> None:
        """`context`: tokens in the KV cache before the step."""
        self.roofline, self.shape, self.context = roofline, shape, context
        self.slices = processors(roofline.board)
        self.families = list(dict.fromkeys(p.family for p in self.slices))
        self._units: dict[tuple[str, int], list[Estimate]] = {}
        self._whole_s: dict[tuple[str, int], float] = {}
        self._counted: dict[int, list[tuple[Op, ...]]] = {}

    def units(self, processor: Processor, n: int) -> list[Estimate]:
        """Each unit of a step of n tokens on a processor."""
        key = (processor.name, n)
        if key not in self._units:
            self._units[key] = self.roofline.units(self.counted(n), processor)
        return self._units[key]

    def counted(self, n: int) -> list[tuple[Op, ...]]:
        """The operators of a step of n tokens."""
        if n not in self._counted:  # once, because equal layers are recognised by identity
            self._counted[n] = step_units(self.shape, n, self.context)
        return self._counted[n]

    def step(self, placement: Placement, n: int) -> Estimate:
        """A step of n tokens under a placement: units, the call of each segment, borders."""
        estimate, before = Estimate(), None
        for segment in placement.segments:
            estimate = estimate + self.roofline.step_overhead(segment.processor)
            if before is not None:
                estimate = estimate + self.roofline.border(before, segment.processor, n * self.shape.hidden)
            for unit in self.units(segment.processor, n)[segment.start : segment.end]:
                estimate = estimate + unit
            before = segment.processor
        return estimate

    def step_s(self, placement: Placement, n: int) -> float:
        """Seconds of `step`; kept for whole placements."""
        if not placement.whole:
            return self.step(placement, n).total_s
        key = (placement.segments[0].processor.name, n)
        if key not in self._whole_s:
            self._whole_s[key] = self.step(placement, n).total_s
        return self._whole_s[key]

    def whole(self, processor: Processor) -> Placement:
        """The model on one processor."""
        return Placement((Segment(processor, 0, self.shape.units),))

    def frontier(self, steps: Sequence[tuple[float, int]]) -> list[tuple[float, int, Placement]]:
        """The placements worth having for a mix of steps: (seconds, GPU bytes, placement), fastest first.

        Every placement with at most two borders is looked at; kept are those that no other one beats in both time and
        GPU memory. Equals go to the one with fewer borders, then to the board's order of processors.

        Args:
            steps: (times, n) of the steps that count.
        """
        table = {family: self._segment_costs(family, steps) for family in self.families}
        found: list[tuple[float, int, int, Placement]] = []
        best_by_bytes: dict[int, tuple[float, tuple[tuple[str, int, int], ...]]] = {}
        sizes = _GpuBytes(self.shape)
        border = {(a, b): self._border(a, b, steps) for a in self.families for b in self.families if a != b}
        for cuts in _cuts(self.families, self.shape.units):
            time, copied, before = 0.0, 0, ""
            for family, start, end in cuts:
                time += table[family][start][end][0]
                if before:
                    time += border[before, family]
                if family == "gpu":
                    copied += sizes(start, end)
                before = family
            seen = best_by_bytes.get(copied)
            if seen is None or time < seen[0]:
                best_by_bytes[copied] = (time, cuts)
        for copied, (time, cuts) in best_by_bytes.items():
            segments = tuple(Segment(table[f][start][end][1], start, end) for f, start, end in cuts)
            found.append((time, copied, len(cuts), Placement(segments)))
        frontier: list[tuple[float, int, Placement]] = []
        for time, copied, _, placement in sorted(found, key=lambda x: (x[0], x[1], x[2])):
            if not frontier or copied < frontier[-1][1]:
                frontier.append((time, copied, placement))
        return frontier

    def _segment_costs(self, family: str, steps: Sequence[tuple[float, int]]) -> list[list[tuple[float, Processor]]]:
        """[start][end] -> (seconds, slice): a segment of units on the fastest slice of a family."""
        units = self.shape.units
        best: list[list[tuple[float, Processor]]] = [[] for _ in range(units)]
        for processor in (p for p in self.slices if p.family == family):
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

    def _border(self, a: str, b: str, steps: Sequence[tuple[float, int]]) -> float:
        first = {p.family: p for p in reversed(self.slices)}
        return sum(
            times * self.roofline.border(first[a], first[b], n * self.shape.hidden).total_s for times, n in steps
        )


class _GpuBytes:
    """Bytes to copy for a segment on the GPU, by prefix sums."""

    def __init__(self, shape: DecoderShape) -> None:
        self.prefix = [0]
        for size in shape.unit_bytes:
            self.prefix.append(self.prefix[-1] + size)
        self.units = shape.units
        self.table = shape.embedding.nbytes(shape.hidden, shape.vocab) if shape.tied else 0

    def __call__(self, start: int, end: int) -> int:
        tied = self.table if start == 0 and end < self.units else 0
        return self.prefix[end] - self.prefix[start] + tied


_CUTS: dict[tuple[tuple[str, ...], int], list[tuple[tuple[str, int, int], ...]]] = {}


def _cuts(families: Sequence[str], units: int) -> list[tuple[tuple[str, int, int], ...]]:
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


def disjoint(a: Processor, b: Processor) -> bool:
    """Whether two slices can work at the same time: no core of one is needed by the other."""
    if isinstance(a, GpuSlice) or isinstance(b, GpuSlice):
        return isinstance(a, GpuSlice) != isinstance(b, GpuSlice)
    counts = {cluster.name: cluster.count for s in (a, b) for cluster, _ in s.parts}
    return all(_cores(a, name) + _cores(b, name) <= count for name, count in counts.items())


def shared_cluster(a: Processor, b: Processor) -> Cluster | None:
    """The cluster that both have cores of, or None."""
    if isinstance(a, GpuSlice) or isinstance(b, GpuSlice):
        return None
    return next((cluster for cluster, _ in a.parts if _cores(b, cluster.name)), None)


def _cores(processor: CpuSlice, cluster: str) -> int:
    return processor.cores.get(cluster, 0)
