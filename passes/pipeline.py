"""The table of contents: what happens to a decoder between the ONNX file and the kernels, in order.

    0 import     ONNX in an exporter's dialect -> canonical ONNX -> Relax in the decoder dialect
    1 partition  every operator gets a processor; one function per segment, one module per processor
    2 fuse       operators that a kernel computes together become one
    3 layout     KV caches become buffers written in place, weights become panels
    4 entries    one function per segment and width of new tokens
    5 lower      activations become integers where that is asked for; dialect -> kernels of the processor

The order matters in two places: segments are cut before anything is fused, so that one residual stream crosses a
border and not the halves of a fused operator; caches turn into buffers (3) after all stock passes of phase 2, because
TVM takes an in-place write for a pure function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import tvm

from costmodel.format import FLOAT, INT8
from costmodel.place import Place
from passes.lower.lowered import ExitLayers, IrDump, LoweredDecoder, LoweredSegment
from passes.lower.operators import Lower
from passes.lower.pack import PackedWeight, PackWeights
from passes.onnx import Decoder
from passes.place.partition import WHOLE, Segment, partition, weights_of
from passes.place.place_ops import PlacedOp, place_ops
from passes.relax.cache_in_place import CacheInPlace
from passes.relax.decoder_interface import DecoderInterface
from passes.relax.fuse_add_norm import FuseAddNorm
from passes.relax.fuse_gated_ffn import FuseGatedFfn
from passes.relax.half_as_bits import HalfAsBits
from passes.relax.make_entries import MakeEntries, exit_name
from passes.relax.quantise_activations import QuantiseActivations
from passes.relax.translate import onnx_to_relax
from targets.backend import HOST, Kernels, Tile, backend
from targets.kv_format import DEFAULT_KV


def lower_decoder(
    decoder: Decoder,
    tiles: Mapping[str, Tile],
    place: Place,
    context: int,
    steps: Sequence[int],
    prefill: int,
    dump: IrDump | None = None,
    why: str = "as given",
    fallback: bool = False,
    activations: str = FLOAT,
    kv: str = DEFAULT_KV,
    kernels: Mapping[str, Kernels | None] = MappingProxyType({}),
    slots: int = 1,
    rows: Sequence[int] = (),
    long_prefill: int | None = None,
    exit_: ExitLayers | None = None,
) -> LoweredDecoder:
    """Run phases 0b to 5.

    Args:
        decoder: the canonical decoder.
        tiles: how the kernels of each processor are cut.
        place: where the parts of the model run.
        context: tokens of cache.
        steps: widths of the entry points.
        prefill: tokens of a prompt chunk.
        dump: receives the IR after each phase.
        why: where the placement comes from, for its reasons.
        fallback: also compile the whole model for the CPU where the placement needs another processor.
        activations: INT8: block-quantised matrix multiplications get int8 activations where the processor has kernels.
        kv: the type in which keys and values are stored, of targets/kv_format.py.
        kernels: by processor, what knows kernels that were compiled before.
        slots: sequences that the caches hold.
        rows: widths of the entry points whose rows are of several sequences.
        long_prefill: tokens of a second prompt chunk, or None.
        exit_: first layers that get entry points of their own beside the decoder's.

    Raises:
        UserError: an operator is unknown or has no kernel, or the placement names layers that are not there.
    """
    dump = dump or IrDump()
    packed = dict[str, PackedWeight]()
    prefills = (prefill,) if long_prefill is None else (prefill, long_prefill)
    sizes = _Sizes(tiles, context, prefills, fallback, kv, slots, tuple(rows))
    made = [_in_entries(ExitLayers(decoder, place, steps, why, dump), sizes, packed)]
    if exit_ is not None:
        made.append(_in_entries(exit_, sizes, packed, exit_name(exit_.decoder.facts.layers)))
    modules = {}
    for processor in made[0].entries:
        kind, tile = backend(processor), tiles[processor]
        of_all = [entries for model in made for entries in [model.entries.get(processor)] if entries is not None]
        mod = tvm.IRModule({var: func for entries in of_all for var, func in entries.functions.items()})
        integers = [QuantiseActivations(kind, tile)] if activations == INT8 else []
        modules[processor] = dump(
            f"5-lower-{processor}", _run(mod, *integers, Lower(kind, tile, kernels.get(processor)))
        )
    whole, *short = (model.lowered(modules, packed) for model in made)
    return replace(whole, exit=short[0]) if short else whole


@dataclass(frozen=True)
class _Sizes:
    """What a decoder and its first layers are both compiled for; see `lower_decoder`."""

    tiles: Mapping[str, Tile]
    context: int
    prefills: tuple[int, ...]
    fallback: bool
    kv: str
    slots: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class _InEntries:
    """A decoder after phase 4: entry points by processor, the weights of each segment by processor and name."""

    entries: dict[str, Any]
    params: dict[tuple[str, str], tuple[str, ...]]
    segments: tuple[Segment, ...]
    back: tuple[Segment, ...]
    sources: dict[str, Any]
    placed: list[PlacedOp]
    origins: tuple[Any, ...]

    def lowered(self, modules: Mapping[str, Any], packed: Mapping[str, PackedWeight]) -> LoweredDecoder:
        """With the modules of its processors, and those of the packed weights that it reads."""

        def chain(segments: Sequence[Segment]) -> tuple[LoweredSegment, ...]:
            return tuple(LoweredSegment(s, self.params[s.processor, s.name]) for s in segments)

        own = {processor: modules[processor] for processor in self.entries}
        stored = [weight for name, weight in packed.items() if name in self.sources]
        return LoweredDecoder(
            *(own, chain(self.segments), chain(self.back), stored, self.sources, self.placed, self.origins)
        )


def _in_entries(
    layers: ExitLayers, sizes: _Sizes, packed: dict[str, PackedWeight], name: str | None = None
) -> _InEntries:
    """Phases 0b to 4 of a decoder, or of first layers under a name; weights that are not in `packed` are added."""
    dump, tiles, context = layers.dump or IrDump(), sizes.tiles, sizes.context
    imported = onnx_to_relax(layers.decoder)
    main = _run(dump("0-import", imported.mod), DecoderInterface())["main"]
    placed = place_ops(main, imported.origins, layers.place, layers.decoder.facts.layers, layers.why)
    names = ("s", WHOLE) if name is None else (f"{name}_s", name)
    parts = partition(main, [op.processor for op in placed], *names)
    functions = {processor: dict(made) for processor, made in parts.functions.items()}
    whole = partition(main, [HOST] * len(placed), *names) if sizes.fallback and {*functions} != {HOST} else None
    if whole is not None:
        functions.setdefault(HOST, {}).update(whole.functions[HOST])
    fills = [_last_with_layers(made.segments) for made in (parts, whole) if made is not None]

    entries, params, sources = dict[str, Any](), dict[tuple[str, str], tuple[str, ...]](), dict[str, Any]()
    for processor, made in sorted(functions.items()):
        kind, tile = backend(processor), tiles[processor]
        mod = dump(f"1-partition-{processor}", tvm.IRModule(made))
        mod = dump(f"2-fuse-{processor}", _run(mod, FuseGatedFfn(), FuseAddNorm()))
        pack = PackWeights(tile)
        half = [HalfAsBits()] if kind.half_as_bits else []
        mod = dump(f"3-layout-{processor}", _run(mod, CacheInPlace(tile, context, sizes.kv), pack, *half))
        stored = _store(pack.packed, packed, processor)
        sources |= {new: imported.weights[old] for old, new in stored.items()}
        for var, func in mod.functions.items():
            params[processor, str(var.name_hint)] = tuple(stored[p.name] for p in weights_of(func))
        told = sizes.slots > 1 and not kind.slot_views
        cut = MakeEntries(layers.steps, sizes.prefills, sizes.slots, sizes.rows, fills, told_slot=told)
        entries[processor] = dump(f"4-entries-{processor}", _run(mod, cut))
    back = whole.segments if whole is not None else ()
    return _InEntries(entries, params, parts.segments, back, sources, placed, imported.origins)


def _last_with_layers(segments: Sequence[Segment]) -> str:
    return [segment.name for segment in segments if segment.layers][-1]


def _store(made: Sequence[PackedWeight], packed: dict[str, PackedWeight], processor: str) -> dict[str, str]:
    """Add weights to those stored; both processors share one unless their panels differ: name -> stored name."""
    names = {}
    for weight in made:
        same = packed.setdefault(weight.name, weight)
        names[weight.name] = weight.name if same.shape == weight.shape else f"{weight.name}@{processor}"
        packed.setdefault(names[weight.name], replace(weight, name=names[weight.name]))
    return names


def _run(mod: Any, *module_passes: Any) -> Any:
    for module_pass in module_passes:
        mod = module_pass(mod)
    return mod
