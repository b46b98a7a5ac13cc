"""A drafter without weights of its own: a decoder's first layers with its final norm and its head behind them."""

from __future__ import annotations

from dataclasses import replace

from costmodel.decoder import DecoderSpec, Operator
from costmodel.place import ATTENTION, FFN, Part
from targets.errors import UserError


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
