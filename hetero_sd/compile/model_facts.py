"""What the manifest says of a model that was lowered, and its copy in the libraries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from costmodel.schema.model import CacheFacts, ModelFacts, SegmentFacts
from passes.lower.lowered import LoweredDecoder, LoweredSegment
from passes.relax.cache_in_place import key_shape, value_shape
from passes.relax.make_entries import step_name
from targets.backend import Tile, backend

if TYPE_CHECKING:
    from hetero_sd.compile.build import ModelRequest


def model_facts(
    request: ModelRequest,
    lowered: LoweredDecoder,
    bundle: Path,
    weights: Path,
    libraries: Mapping[str, Path],
    tiles: Mapping[str, Tile],
    early_exit: bool,
) -> ModelFacts:
    """What the manifest says of a model; `libraries` may be of more processors than its own."""
    own, place, sizes = {p: libraries[p] for p in lowered.modules}, request.place.place, request.sizes
    carried = request.runtime if any(backend(processor).carries_runtime for processor in own) else None
    facts = request.decoder.facts
    return ModelFacts(
        role=request.name,
        libraries={processor: path.relative_to(bundle).as_posix() for processor, path in own.items()},
        weights=weights.relative_to(bundle).as_posix(),
        layers=facts.layers,
        vocab=facts.vocab,
        context=sizes.context,
        widest_sum=max(facts.hidden, facts.ffn),
        widths=tuple(sorted(sizes.steps)),
        prefill_width=sizes.prefill,
        weight_dtype=facts.weight_dtype,
        place=place,
        chain=tuple(_segment(s) for s in lowered.chain),
        fallback=tuple(_segment(s) for s in lowered.fallback),
        caches=CacheFacts(
            dtype=request.kv,
            key_shape={
                p: (sizes.slots, *key_shape(tiles[p], facts.kv_heads, facts.head_dim, sizes.context, request.kv)[1:])
                for p in own
            },
            value_shape=(sizes.slots, *value_shape(facts.kv_heads, facts.head_dim, sizes.context)[1:]),
        ),
        activations=request.activations,
        quantised=request.quantised,
        row_widths=sizes.rows,
        long_prefill_width=sizes.long_prefill,
        opencl_runtime=carried.relative_to(bundle).as_posix() if carried is not None else None,
        early_exit=early_exit,
    )


def _segment(lowered: LoweredSegment) -> SegmentFacts:
    """A segment as the runtime reads it."""
    segment = lowered.segment
    return SegmentFacts(
        processor=segment.processor,
        prefix=step_name(1, segment.name).removesuffix(step_name(1)),
        inputs=tuple(segment.inputs),
        outputs=tuple(segment.outputs),
        layers=tuple(segment.layers),
        chooses=segment.chooses,
        params=tuple(lowered.params),
    )


def with_facts(mod: Any, name: str, text: str) -> Any:
    """The module with a function of that name that returns `text`, which the runtime compares with the manifest."""
    import tvm
    from tvm import relax

    returns = relax.Function([], tvm.ir.StringImm(text), ret_ty=relax.AnyType()).with_attr("global_symbol", name)
    return tvm.IRModule({**dict(mod.functions.items()), tvm.ir.GlobalVar(name): returns}, attrs=mod.attrs)
