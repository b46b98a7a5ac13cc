"""A decoder whole on one processor, lowered."""

from __future__ import annotations

from collections.abc import Sequence

from costmodel.place import Place
from passes.onnx import Decoder
from passes.pipeline import IrDump, LoweredDecoder, lower_decoder
from targets.backend import HOST, Tile


def lower_whole(
    decoder: Decoder,
    tile: Tile,
    context: int,
    steps: Sequence[int],
    prefill: int,
    dump: IrDump | None = None,
    processor: str = HOST,
) -> LoweredDecoder:
    """`lower_decoder` with everything on `processor`."""
    return lower_decoder(decoder, {processor: tile}, Place(processor), context, steps, prefill, dump)
