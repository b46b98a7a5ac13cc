"""One model for one processor: ONNX file -> library and packed weights in the bundle's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hetero_sd.runtime.weights import Tensor, write_weights
from passes.cache_in_place import key_shape, value_shape
from passes.import_onnx import Decoder
from passes.pack_weights import PackedWeight
from passes.pipeline import IrDump, LoweredDecoder, lower_decoder_for_cpu, lower_decoder_for_gpu
from targets.cortex_a.tile import CpuTile
from targets.device import Core
from targets.mali.tile import GpuTile

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class BuiltModel:
    """What the manifest says of a model, and its sizes.

    Attributes:
        manifest: the entry under `models`.
        library_bytes: size of the library.
        weights_bytes: size of the packed weights.
        source_bytes: size of the weights in the ONNX file.
        cache_bytes: size of the KV caches.
    """

    manifest: dict[str, Any]
    library_bytes: int
    weights_bytes: int
    source_bytes: int
    cache_bytes: int


def build_for_cpu(
    name: str,
    decoder: Decoder,
    core: Core,
    tile: CpuTile,
    context: int,
    steps: Sequence[int],
    prefill: int,
    bundle: Path,
    progress: Progress,
    dump: Path | None = None,
) -> BuiltModel:
    """Compile a decoder for a core into `bundle`/lib and `bundle`/weights.

    Args:
        name: "target" or "draft".
        decoder: the canonical decoder.
        core: CPU core to compile for.
        tile: its register tile.
        context: rows of the KV caches.
        steps: widths of the entry points.
        prefill: tokens of a prompt chunk.
        bundle: folder to write to.
        progress: called with (what, done, total) while weights are packed.
        dump: folder for the IR after each phase.
    """
    from targets.cortex_a.tvm_target import tvm_target

    lowered = lower_decoder_for_cpu(decoder, tile, context, steps, prefill, IrDump(dump))
    library = bundle / "lib" / f"{name}_cpu.so"
    _build_library(lowered, tvm_target(core), core, library)
    extra = {"processor": "cpu"}
    return _built(name, decoder, lowered, tile, context, steps, prefill, bundle, library, extra, progress)


def build_for_gpu(
    name: str,
    decoder: Decoder,
    core: Core,
    tile: GpuTile,
    context: int,
    steps: Sequence[int],
    prefill: int,
    bundle: Path,
    runtime: Path,
    progress: Progress,
    dump: Path | None = None,
) -> BuiltModel:
    """The same for an OpenCL GPU, whose kernels `core` launches.

    Args:
        name: "target" or "draft".
        decoder: the canonical decoder.
        core: CPU core that the host code is compiled for.
        tile: how the kernels are cut.
        context: rows of the KV caches.
        steps: widths of the entry points.
        prefill: tokens of a prompt chunk.
        bundle: folder to write to.
        runtime: the OpenCL runtime in the bundle's folder, named in the manifest so that it is verified.
        progress: called with (what, done, total) while weights are packed.
        dump: folder for the IR after each phase.
    """
    from targets.mali.tvm_target import opencl_target

    lowered = lower_decoder_for_gpu(decoder, tile, context, steps, prefill, IrDump(dump))
    library = bundle / "lib" / f"{name}_gpu.so"
    _build_library(lowered, opencl_target(core), core, library)
    extra = {"processor": "gpu", "opencl_runtime": runtime.relative_to(bundle).as_posix()}
    return _built(name, decoder, lowered, tile, context, steps, prefill, bundle, library, extra, progress)


def _built(
    name: str,
    decoder: Decoder,
    lowered: LoweredDecoder,
    tile: CpuTile | GpuTile,
    context: int,
    steps: Sequence[int],
    prefill: int,
    bundle: Path,
    library: Path,
    extra: dict[str, Any],
    progress: Progress,
) -> BuiltModel:
    """Write the packed weights and describe the model."""
    weights = bundle / "weights" / f"{name}.safetensors"
    weights.parent.mkdir(exist_ok=True)
    write_weights(weights, _tensors(lowered, progress))
    facts = decoder.facts
    manifest = {
        "library": library.relative_to(bundle).as_posix(),
        "weights": weights.relative_to(bundle).as_posix(),
        **extra,
        "layers": facts.layers,
        "vocab": facts.vocab,
        "context": context,
        "widest_sum": max(facts.hidden, facts.ffn),
        "widths": sorted(steps),
        "prefill_width": prefill,
        "weight_dtype": facts.weight_dtype,
        "params": [p.name for p in lowered.packed],
        "caches": {
            "count": facts.layers,
            "dtype": "float32",
            "key_shape": list(key_shape(tile, facts.kv_heads, facts.head_dim, context)),
            "value_shape": list(value_shape(facts.kv_heads, facts.head_dim, context)),
        },
    }
    source = sum(int(lowered.weights[p.name].nbytes) for p in lowered.packed)
    caches = 2 * facts.layers * context * facts.kv_heads * facts.head_dim * 4
    return BuiltModel(manifest, library.stat().st_size, weights.stat().st_size, source, caches)


def _build_library(lowered: LoweredDecoder, target: Any, core: Core, path: Path) -> None:
    from tvm import relax

    from targets.cortex_a.toolchain import link_function

    executable = relax.build(lowered.mod, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    executable.export_library(str(path), fcompile=link_function(core))


def _tensors(lowered: LoweredDecoder, progress: Progress) -> Iterator[Tensor]:
    """The packed weights one by one, so that at most one of them is in memory."""
    total = sum(_nbytes(p) for p in lowered.packed)
    done = 0

    def make(weight: PackedWeight) -> Callable[[], npt.NDArray[Any]]:
        def packed() -> npt.NDArray[Any]:
            nonlocal done
            source = lowered.weights[weight.name]
            array = weight.pack(source.numpy())
            if hasattr(source, "release"):
                source.release()  # unmaps the file, whose pages would count as ours
            done += array.nbytes
            progress("pack weights", done, total)
            return array

        return packed

    for weight in lowered.packed:
        yield weight.name, weight.dtype, weight.shape, make(weight)


def _nbytes(weight: PackedWeight) -> int:
    return int(np.prod(weight.shape)) * np.dtype(weight.dtype).itemsize
