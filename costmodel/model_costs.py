"""Steps of one model, priced on every processor and for every placement."""

from __future__ import annotations

from dataclasses import replace

from costmodel.decoder import DecoderSpec
from costmodel.estimate import Estimate
from costmodel.place import ATTENTION, EMBEDDING, FFN, HEAD, Part, Place
from costmodel.placement import Placement, Segment
from costmodel.processor import CpuSlice, GpuSlice, Processor, processors
from costmodel.roofline import Roofline
from costmodel.work import Op, step_units
from targets.errors import UserError


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
                estimate = estimate + self.roofline.border(before, segment.processor, n * self.spec.border)
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
