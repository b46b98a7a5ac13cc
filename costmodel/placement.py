"""Where the parts of one model run: at most two borders, and what it says to people.

A model is a row of units (embedding, layers, head). A placement cuts it into one to three segments; neighbouring
segments run on different processors, each with the thread count that is fastest for it.

Weights count once, where they are read: in the mapped file for the CPU, in the GPU's own copy for the GPU. The pages
of the file that were copied are mapped no longer, so the system drops them when memory is short. Only a tied matrix
whose table and head are on different sides counts twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.decoder import DecoderSpec
from costmodel.place import EMBEDDING, HEAD, Part, Place
from costmodel.processor import GpuSlice, Processor


@dataclass(frozen=True)
class Segment:
    """Units `start` to `end` (exclusive) on one processor; with `part` only the attention or the FFN of one layer."""

    processor: Processor
    start: int
    end: int
    part: str = ""


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

    def place(self, spec: DecoderSpec) -> Place:
        """The rule of a placement on one cluster and the GPU: whole, its second segment, or one kind of part."""
        sides = ["gpu" if isinstance(s.processor, GpuSlice) else "cpu" for s in self.segments]
        apart = [(side, s.part) for side, s in zip(sides, self.segments, strict=True) if s.part and side != sides[0]]
        if apart:
            return Place(*apart[0])
        if len(sides) == 1:
            return Place(sides[0])
        named = self.segments[1]
        return Place(sides[1], "", _unit(spec, named.start), _unit(spec, named.end - 1))

    def weight_bytes(self, spec: DecoderSpec) -> tuple[int, int]:
        """Bytes of weights that the CPU reads from the mapped file, and those of which the GPU has a copy."""
        sides = [0, 0]
        for segment in self.segments:
            size = sum(spec.unit_bytes[segment.start : segment.end])
            if segment.part:
                size = spec.part_bytes(Part(segment.part, segment.start - 1))
            sides[isinstance(segment.processor, GpuSlice)] += size
        table = tied_twice(spec, self.families[0], self.families[-1])
        sides[isinstance(self.segments[0].processor, GpuSlice)] += table
        return sides[0], sides[1]

    def text(self, spec: DecoderSpec) -> str:
        """For people: ``gpu``, or ``a76 x4: embedding to layer 11; gpu: layer 12 to head``."""
        if self.whole:
            return self.segments[0].processor.name
        by_kind = {s.part: s.processor.name for s in self.segments if s.part}
        if by_kind:
            return "; ".join(f"{name}: {part} of every layer" for part, name in by_kind.items())
        return "; ".join(f"{s.processor.name}: {_units(spec, s.start, s.end)}" for s in self.segments)


def _units(spec: DecoderSpec, start: int, end: int) -> str:
    def name(unit: int) -> str:
        found = _unit(spec, unit)
        return f"layer {found}" if found.isdecimal() else found

    return name(start) if end == start + 1 else f"{name(start)} to {name(end - 1)}"


def _unit(spec: DecoderSpec, unit: int) -> str:
    return EMBEDDING if unit == 0 else HEAD if unit == len(spec.units) - 1 else str(unit - 1)


def tied_twice(spec: DecoderSpec, first: str, last: str) -> int:
    """Bytes of the table where a tied matrix is kept on both sides: embedding and head not both on the GPU or CPU."""
    apart = spec.tied and (first == "gpu") != (last == "gpu")
    return spec.embedding.matrix_bytes if apart else 0
