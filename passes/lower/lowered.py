"""A decoder ready for the build: its modules, segments and packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodel.place import Place
from passes.lower.pack import PackedWeight
from passes.onnx import Decoder
from passes.place.partition import Segment
from passes.place.place_ops import PlacedOp


@dataclass(frozen=True)
class LoweredSegment:
    """A segment with the names of its weights in call order, as `LoweredDecoder.packed` has them."""

    segment: Segment
    params: tuple[str, ...]


@dataclass(frozen=True)
class LoweredDecoder:
    """What the build needs.

    Attributes:
        modules: by processor, entry points and PrimFuncs, ready for `relax.build`.
        chain: the segments in order.
        fallback: the whole model on the CPU where the chain needs another processor and it was asked for; else empty.
        packed: every weight as it is stored, once.
        weights: source tensors by the name of their packed form (lazy).
        placed: the operators with their processors and reasons.
        origins: the ONNX node of each of them but the last, which the canonical model has no node for.
        exit: first layers with entry points of their own in the same modules, or None; their weights are among these.
    """

    modules: dict[str, Any]
    chain: tuple[LoweredSegment, ...]
    fallback: tuple[LoweredSegment, ...]
    packed: list[PackedWeight]
    weights: dict[str, Any]
    placed: list[PlacedOp]
    origins: tuple[Any, ...]
    exit: LoweredDecoder | None = None

    @property
    def mod(self) -> Any:
        """The module of a model on one processor."""
        (only,) = self.modules.values()
        return only


@dataclass(frozen=True)
class IrDump:
    """Writes the module after each phase to a folder, for reading; None writes nothing."""

    folder: Path | None = None

    def __call__(self, phase: str, mod: Any) -> Any:
        """Dump `mod` as `<phase>.py` and hand it on."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{phase}.py").write_text(mod.script(show_meta=False))
        return mod


@dataclass(frozen=True)
class ExitLayers:
    """First layers of a decoder that draft for it, compiled with it into the same modules.

    Attributes:
        decoder: the canonical decoder that ends there (passes/onnx/first_layers.py).
        place: where its parts run: where the whole decoder has them.
        steps: widths of the entry points.
        why: where the placement comes from.
        dump: receives the IR after each phase before they are lowered with the whole decoder.
    """

    decoder: Decoder
    place: Place
    steps: Sequence[int]
    why: str = "as given"
    dump: IrDump | None = None
