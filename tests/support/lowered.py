"""A decoder whole on one processor, lowered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from costmodel.format import FLOAT
from costmodel.place import Place
from passes.lower.lowered import IrDump, LoweredDecoder
from passes.onnx import Decoder
from passes.pipeline import lower_decoder
from targets.backend import HOST, Kernels, Tile


def lower_whole(
    decoder: Decoder,
    tile: Tile,
    context: int,
    steps: Sequence[int],
    prefill: int,
    dump: IrDump | None = None,
    processor: str = HOST,
    activations: str = FLOAT,
    kernels: Mapping[str, Kernels | None] = MappingProxyType({}),
) -> LoweredDecoder:
    """`lower_decoder` with everything on `processor`."""
    place = Place(processor)
    return lower_decoder(
        *(decoder, {processor: tile}, place, context, steps, prefill, dump), activations=activations, kernels=kernels
    )
