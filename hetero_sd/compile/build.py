"""One model: canonical decoder -> a library per processor and packed weights in the bundle's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from costmodel.batch_calls import row_widths
from costmodel.format import FLOAT
from costmodel.place import ReasonedPlace
from costmodel.schema.manifest import TokenizerFacts
from costmodel.schema.model import CacheFacts, ModelFacts, QuantisedFacts, SegmentFacts
from hetero_sd.compile.bundle import copy_thread_pool
from hetero_sd.runtime.model.library_facts import ENTRY, facts_json
from hetero_sd.runtime.model.weights import Tensor, write_weights
from passes.lower.check_finite import check_finite
from passes.lower.pack import PackedWeight
from passes.onnx import Decoder
from passes.pipeline import IrDump, LoweredDecoder, LoweredSegment, lower_decoder
from passes.place.place_ops import PlacedOp
from passes.place.write_subgraphs import write_subgraphs
from passes.relax.cache_in_place import key_shape, value_shape
from passes.relax.make_entries import step_name
from targets.backend import HOST, Progress, backend
from targets.device import Core, Gpu
from targets.kv_format import DEFAULT_KV


@dataclass(frozen=True)
class BuiltModel:
    """What the manifest says of a model, and its sizes.

    Attributes:
        facts: what the manifest says of it.
        library_bytes: size of the library.
        weights_bytes: size of the packed weights; 0 where another model's are read.
        source_bytes: size of the weights in the ONNX file; likewise.
        placed: every operator with its processor and reason.
    """

    facts: ModelFacts
    library_bytes: int
    weights_bytes: int
    source_bytes: int
    placed: tuple[PlacedOp, ...]


@dataclass(frozen=True)
class Sizes:
    """What a model is compiled for.

    Attributes:
        context: rows of the KV caches.
        steps: widths of the entry points, in new tokens.
        prefill: tokens of a prompt chunk.
        slots: sequences that the KV caches hold.
        long_prefill: tokens of a second prompt chunk, or None.
    """

    context: int
    steps: tuple[int, ...]
    prefill: int
    slots: int = 1
    long_prefill: int | None = None

    @property
    def rows(self) -> tuple[int, ...]:
        """Widths of the entry points whose rows are of several sequences; more rows take several calls."""
        return row_widths(self.slots)


@dataclass(frozen=True)
class ModelRequest:
    """One model to compile.

    Attributes:
        name: "target" or "draft".
        decoder: the canonical decoder.
        core: CPU core to compile for; it also launches the GPU's kernels.
        place: which part of the model runs where, and why.
        sizes: context and widths.
        gpu: the board's GPU, where the placement needs one.
        runtime: the OpenCL runtime in the bundle's folder, named in the manifest so that it is verified.
        fallback: add the whole model for the CPU to a placement that needs another processor.
        dump: folder for the IR after each phase, or None.
        subgraphs: folder for the segments as ONNX files, or None.
        activations: FLOAT or INT8, for block-quantised matrix multiplications.
        kv: the type in which keys and values are stored.
        quantised: how the weights were quantised; None: they are the export's own.
        weights_of: the model whose weights it reads: its own name, or one that was built before and has all of them.
        tokenizer: the manifest's `tokenizer`, which the libraries keep beside the other facts (library_facts.py).
    """

    name: str
    decoder: Decoder
    core: Core
    place: ReasonedPlace
    sizes: Sizes
    gpu: Gpu | None = None
    runtime: Path | None = None
    fallback: bool = False
    dump: Path | None = None
    subgraphs: Path | None = None
    activations: str = FLOAT
    kv: str = DEFAULT_KV
    quantised: QuantisedFacts | None = None
    tokenizer: TokenizerFacts | None = None
    weights_of: str = ""

    @property
    def owns_weights(self) -> bool:
        """Whether its weights are written with it."""
        return self.weights_of in ("", self.name)


def build_model(request: ModelRequest, bundle: Path, progress: Progress = lambda *_: None) -> BuiltModel:
    """Compile a decoder into `bundle`/lib, one library per processor, and `bundle`/weights.

    Args:
        request: what to compile.
        bundle: folder to write to.
        progress: called with (what, done, total) while weights are packed and kernels are compiled.

    Raises:
        UserError: an operator has no kernel on its processor, the placement names layers that are not there, or a
            weight is not finite.
    """
    name, decoder, core, sizes = request.name, request.decoder, request.core, request.sizes
    place = request.place.place
    tiles = {p: backend(p).tile(core, request.gpu) for p in dict.fromkeys((HOST, *place.processors))}
    dump = request.dump
    kernels = {p: backend(p).kernels(core, bodies=dump is not None) for p in tiles}
    lowered = lower_decoder(
        *(decoder, tiles, place, sizes.context, sizes.steps, sizes.prefill),
        *(IrDump(dump), request.place.reason, request.fallback, request.activations, request.kv, kernels),
        *(sizes.slots, sizes.rows, sizes.long_prefill),
    )
    if request.subgraphs is not None:
        write_subgraphs(decoder, lowered.origins, lowered.placed, request.subgraphs)
    copy_thread_pool(bundle, core.isa)
    weights = bundle / "weights" / f"{request.weights_of or name}.safetensors"
    weights.parent.mkdir(exist_ok=True)
    if request.owns_weights:  # before the kernels, which take long: a weight may be refused
        write_weights(weights, _tensors(name, lowered, progress), {"model": name})
    libraries = {processor: bundle / "lib" / f"{name}_{processor}.so" for processor in lowered.modules}

    carried = request.runtime if any(backend(processor).carries_runtime for processor in libraries) else None
    facts = decoder.facts
    described = ModelFacts(
        role=name,
        libraries={processor: path.relative_to(bundle).as_posix() for processor, path in libraries.items()},
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
                for p in lowered.modules
            },
            value_shape=(sizes.slots, *value_shape(facts.kv_heads, facts.head_dim, sizes.context)[1:]),
        ),
        activations=request.activations,
        quantised=request.quantised,
        row_widths=sizes.rows,
        long_prefill_width=sizes.long_prefill,
        opencl_runtime=carried.relative_to(bundle).as_posix() if carried is not None else None,
    )
    kept = facts_json(described, [(p.name, p.dtype, p.shape) for p in lowered.packed], request.tokenizer)
    for processor, library in libraries.items():
        module = _with_facts(lowered.modules[processor], kept)
        backend(processor).build(module, core, library, kernels[processor], progress)
    source = sum(int(lowered.weights[p.name].nbytes) for p in lowered.packed)
    source = source if request.quantised is None else decoder.stored_bytes
    return BuiltModel(
        described,
        library_bytes=sum(path.stat().st_size for path in libraries.values()),
        weights_bytes=weights.stat().st_size if request.owns_weights else 0,
        source_bytes=source if request.owns_weights else 0,
        placed=tuple(lowered.placed),
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


def _with_facts(mod: Any, text: str) -> Any:
    """The module with a function that returns `text`, which the runtime compares with the manifest."""
    import tvm
    from tvm import relax

    returns = relax.Function([], tvm.ir.StringImm(text), ret_ty=relax.AnyType()).with_attr("global_symbol", ENTRY)
    return tvm.IRModule({**dict(mod.functions.items()), tvm.ir.GlobalVar(ENTRY): returns}, attrs=mod.attrs)


def _tensors(role: str, lowered: LoweredDecoder, progress: Progress) -> Iterator[Tensor]:
    """The packed weights one by one, in pieces, so that at most one of them is in memory."""
    total = sum(_nbytes(p) for p in lowered.packed)
    done = 0

    def make(weight: PackedWeight) -> Callable[[], Iterator[npt.NDArray[Any]]]:
        def packed() -> Iterator[npt.NDArray[Any]]:
            nonlocal done
            source = lowered.weights[weight.name]
            for piece in weight.pieces(source.numpy()):
                check_finite(f"{role} model: weight {source.name or weight.name!r}", piece)
                if hasattr(source, "give_back"):
                    source.give_back()  # the pages of a mapped file would count as ours
                done += piece.nbytes
                progress("pack weights", done, total)
                yield piece
            if hasattr(source, "release"):
                source.release()

        return packed

    for weight in lowered.packed:
        yield weight.name, weight.dtype, weight.shape, make(weight)


def _nbytes(weight: PackedWeight) -> int:
    return int(np.prod(weight.shape)) * np.dtype(weight.dtype).itemsize
