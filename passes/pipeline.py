"""The table of contents: what happens to a decoder between the ONNX file and the kernels, in order.

    0 import    ONNX in an exporter's dialect -> canonical ONNX -> Relax in the decoder dialect
    1 fuse      operators that a kernel computes together become one
    2 layout    KV caches become buffers written in place, weights become panels
    3 entries   one function per width of new tokens
    4 lower     dialect -> kernels of the processor

The order matters in one place: caches turn into buffers (2) after all stock passes of phase 1, because TVM takes an
in-place write for a pure function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passes.cache_in_place import CacheInPlace
from passes.fuse_add_norm import FuseAddNorm
from passes.fuse_gated_ffn import FuseGatedFfn
from passes.half_as_bits import HalfAsBits
from passes.import_onnx import Decoder
from passes.lower_cpu import LowerCpu
from passes.lower_mali import LowerMali
from passes.make_entries import MakeEntries
from passes.onnx_to_relax import onnx_to_relax
from passes.pack_weights import PackedWeight, PackWeights
from targets.cortex_a.tile import CpuTile
from targets.mali.tile import GpuTile


@dataclass(frozen=True)
class LoweredDecoder:
    """What the build needs.

    Attributes:
        mod: module of entry points and PrimFuncs, ready for `relax.build`.
        packed: the weight parameters in call order, after the caches.
        weights: source tensors by name (lazy).
    """

    mod: Any
    packed: list[PackedWeight]
    weights: dict[str, Any]


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


def lower_decoder_for_cpu(
    decoder: Decoder,
    tile: CpuTile,
    context: int,
    steps: Sequence[int],
    prefill: int,
    dump: IrDump | None = None,
) -> LoweredDecoder:
    """Run phases 0b to 4 for one CPU; `context` tokens of cache, entry points for `steps` and one prefill chunk."""
    return _lower(decoder, tile, [], LowerCpu(tile), context, steps, prefill, dump or IrDump())


def lower_decoder_for_gpu(
    decoder: Decoder,
    tile: GpuTile,
    context: int,
    steps: Sequence[int],
    prefill: int,
    dump: IrDump | None = None,
) -> LoweredDecoder:
    """The same for one OpenCL GPU; weights have the CPU's panels, float16 ones are parameters of type uint16."""
    return _lower(decoder, tile, [HalfAsBits()], LowerMali(tile), context, steps, prefill, dump or IrDump())


def _lower(
    decoder: Decoder,
    tile: CpuTile | GpuTile,
    retype: Sequence[Any],
    lower: Any,
    context: int,
    steps: Sequence[int],
    prefill: int,
    dump: IrDump,
) -> LoweredDecoder:
    imported = onnx_to_relax(decoder)
    mod = dump("0-import", imported.mod)

    mod = dump("1-fuse", _run(mod, FuseGatedFfn(), FuseAddNorm()))

    pack = PackWeights(tile)
    mod = dump("2-layout", _run(mod, CacheInPlace(tile, context), pack, *retype))

    mod = dump("3-entries", _run(mod, MakeEntries(steps, prefill)))
    mod = dump("4-lower", _run(mod, lower))
    return LoweredDecoder(mod, pack.packed, imported.weights)


def _run(mod: Any, *module_passes: Any) -> Any:
    for module_pass in module_passes:
        mod = module_pass(mod)
    return mod
