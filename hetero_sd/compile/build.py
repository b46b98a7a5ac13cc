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
from costmodel.schema.model import ModelFacts, QuantisedFacts
from hetero_sd.compile.bundle import copy_thread_pool
from hetero_sd.compile.model_facts import model_facts, with_facts
from hetero_sd.runtime.model.library_facts import ENTRY, facts_json
from hetero_sd.runtime.model.weights import Tensor, write_weights
from passes.lower.check_finite import check_finite
from passes.lower.lowered import ExitLayers, IrDump, LoweredDecoder
from passes.lower.pack import PackedWeight
from passes.onnx import Decoder
from passes.pipeline import lower_decoder
from passes.place.place_ops import PlacedOp
from passes.place.write_subgraphs import write_subgraphs
from targets.backend import HOST, Progress, backend
from targets.device import Core, Gpu
from targets.kv_format import DEFAULT_KV


@dataclass(frozen=True)
class BuiltModel:
    """What the manifest says of a model, and its sizes.

    Attributes:
        facts: what the manifest says of it.
        library_bytes: size of the library; 0 where it is another model's.
        weights_bytes: size of the packed weights; 0 where another model's are read.
        source_bytes: size of the weights in the ONNX file; likewise.
        placed: every operator with its processor and reason.
        exit: the first layers that were compiled with it, or None.
    """

    facts: ModelFacts
    library_bytes: int
    weights_bytes: int
    source_bytes: int
    placed: tuple[PlacedOp, ...]
    exit: BuiltModel | None = None


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
        tokenizer: the manifest's `tokenizer`, which the libraries keep beside the other facts (library_facts.py).
        exit: its first layers, which get entry points of their own in its libraries and read its weights; of their
            request what decides over libraries and weights is not read.
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
    exit: ModelRequest | None = None


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
    place, short = request.place.place, request.exit
    tiles = {p: backend(p).tile(core, request.gpu) for p in dict.fromkeys((HOST, *place.processors))}
    dump = request.dump
    kernels = {p: backend(p).kernels(core, bodies=dump is not None) for p in tiles}
    lowered = lower_decoder(
        *(decoder, tiles, place, sizes.context, sizes.steps, sizes.prefill),
        *(IrDump(dump), request.place.reason, request.fallback, request.activations, request.kv, kernels),
        *(sizes.slots, sizes.rows, sizes.long_prefill, None if short is None else _exit_layers(short)),
    )
    models = [(request, lowered), *([] if short is None or lowered.exit is None else [(short, lowered.exit)])]
    for asked, made in models:
        if asked.subgraphs is not None:
            write_subgraphs(asked.decoder, made.origins, made.placed, asked.subgraphs)
    copy_thread_pool(bundle, core.isa)
    weights = bundle / "weights" / f"{name}.safetensors"
    weights.parent.mkdir(exist_ok=True)
    # before the kernels, which take long: a weight may be refused
    write_weights(weights, _tensors(name, lowered, progress), {"model": name})
    libraries = {processor: bundle / "lib" / f"{name}_{processor}.so" for processor in lowered.modules}
    described = [model_facts(asked, made, bundle, weights, libraries, tiles, asked is short) for asked, made in models]
    tensors = [(p.name, p.dtype, p.shape) for p in lowered.packed]
    for processor, library in libraries.items():
        module = lowered.modules[processor]
        for facts in described:
            if processor in facts.libraries:
                module = with_facts(module, facts.entries + ENTRY, facts_json(facts, tensors, request.tokenizer))
        backend(processor).build(module, core, library, kernels[processor], progress)
    source = sum(int(lowered.weights[p.name].nbytes) for p in lowered.packed)
    return BuiltModel(
        described[0],
        library_bytes=sum(path.stat().st_size for path in libraries.values()),
        weights_bytes=weights.stat().st_size,
        source_bytes=source if request.quantised is None else decoder.stored_bytes,
        placed=tuple(lowered.placed),
        exit=None if lowered.exit is None else BuiltModel(described[1], 0, 0, 0, tuple(lowered.exit.placed)),
    )


def _exit_layers(request: ModelRequest) -> ExitLayers:
    place = request.place
    return ExitLayers(request.decoder, place.place, request.sizes.steps, place.reason, IrDump(request.dump))


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
