"""A drafter without weights of its own: a decoder's first layers with its final norm and its head behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from costmodel.decoder import DecoderSpec
from costmodel.operators import Operator
from costmodel.place import ATTENTION, FFN, Part
from costmodel.placement import Placement, Segment
from targets.errors import UserError

Who = TypeVar("Who")


def first_layers(whole: DecoderSpec, layers: int) -> DecoderSpec:
    """The decoder that leaves ``whole`` after so many layers.

    Raises:
        UserError: they are none, or all.
    """
    if not 1 <= layers < whole.layers:
        given, last = f"an early exit after layer {layers}: {whole.name} has", whole.layers - 1
        if not last:
            raise UserError(f"{given} one layer, which leaves none out")
        raise UserError(f"{given} {whole.layers} layers; give 1{f' to {last}' if last > 1 else ''}")
    # the end of a layer adds and norms for the next one; that of the last layer leaves it to the head's kernels
    ends = {op.name for op in whole.part(Part(FFN, whole.layers - 1))}

    def stays(op: Operator) -> bool:
        if op.part.kind not in (ATTENTION, FFN):
            return True
        return op.part.layer < layers and (op.part != Part(FFN, layers - 1) or op.name in ends)

    kept = tuple(op for op in whole.operators if stays(op))
    name = f"{whole.name}, first {layers} of {whole.layers} layers"
    return replace(whole, name=name, operators=kept, whole=whole)


def placed_with(placement: Placement, whole: DecoderSpec, short: DecoderSpec) -> Placement:
    """Where first layers run, which read the weights and the KV caches of the whole decoder: where it has them."""
    cuts = [((s.processor, s.part), s.start, s.end) for s in placement.segments]
    found = first_cuts(cuts, len(whole.units), len(short.units))
    return Placement(tuple(Segment(processor, start, end, part) for (processor, part), start, end in found))


def first_cuts(cuts: Sequence[tuple[Who, int, int]], whole: int, short: int) -> list[tuple[Who, int, int]]:
    """How first layers are cut where the whole decoder is cut like that: (who, first unit, end).

    Args:
        cuts: of the whole decoder.
        whole: its units: embedding, layers, head.
        short: those that leave early; the last one is the head of both.
    """
    found: list[tuple[Who, int, int]] = []
    for who, start, end in cuts:
        begin, stop = min(start, short - 1), short if end == whole else min(end, short - 1)
        if begin >= stop:
            continue
        if found and found[-1][0] == who:
            begin = found.pop()[1]
        found.append((who, begin, stop))
    return found
