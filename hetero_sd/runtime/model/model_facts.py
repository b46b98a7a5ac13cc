"""What the manifest says of a model, checked: a bundle is untrusted input and its numbers size allocations."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from targets.backend import HOST, backend, names
from targets.errors import UserError
from targets.opencl.runtime import LIBRARY

_MOST = 1 << 31  # of any single size
_MOST_LAYERS = 4096


@dataclass(frozen=True)
class SegmentFacts:
    """A run of operators on one processor.

    Attributes:
        processor: its kind, a name of targets/backend.py.
        prefix: of its entry points: <prefix>step_<n>, <prefix>prefill_<n>.
        inputs: what comes in: "input_ids", or outputs of segments before.
        outputs: what goes out; "logits" and "choice" are the model's.
        layers: whose KV caches it has.
        chooses: its prefill entry takes the row to compute logits for.
        params: names of its weights in call order.
    """

    processor: str
    prefix: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layers: tuple[int, ...]
    chooses: bool
    params: tuple[str, ...]


@dataclass(frozen=True)
class ModelFacts:
    """One entry of the manifest's ``models``.

    Attributes:
        role: "target" or "draft".
        libraries: path of the library in the bundle, by processor.
        weights: path of the weights.
        vocab: token ids 0 to vocab - 1.
        context: rows of the KV caches.
        widths: entry points step_<n>, ascending; 1 is among them.
        prefill_width: entry point prefill_<n>.
        chain: the segments, in order.
        fallback: the whole model on the CPU, for when the GPU fails; empty where the bundle has no such variant.
        key_shapes: shape of a layer's key cache by processor, float32.
        value_shape: of its value cache.
        opencl_runtime: path in the bundle of the library that gives TVM the GPU; None where no library needs one.
    """

    role: str
    libraries: dict[str, str]
    weights: str
    vocab: int
    context: int
    widths: tuple[int, ...]
    prefill_width: int
    chain: tuple[SegmentFacts, ...]
    fallback: tuple[SegmentFacts, ...]
    key_shapes: dict[str, tuple[int, ...]]
    value_shape: tuple[int, ...]
    opencl_runtime: str | None

    @property
    def cache_bytes(self) -> int:
        """Memory of the chain's caches."""
        value = math.prod(self.value_shape)
        return 4 * sum(len(s.layers) * (math.prod(self.key_shapes[s.processor]) + value) for s in self.chain)


def read_model_facts(role: str, table: Mapping[str, Any]) -> ModelFacts:
    """Check and return an entry of ``models``.

    Raises:
        UserError: a key is missing or makes no sense, or the caches do not fit this machine's memory.
    """
    try:
        caches, libraries = table["caches"], table["libraries"]
        processors = [_one_of(p, names()) for p in _object(libraries)]
        carries_runtime = any(backend(p).carries_runtime for p in processors)
        facts = ModelFacts(
            role=role,
            libraries={p: _text(libraries[p]) for p in processors},
            weights=_text(table["weights"]),
            vocab=_size(table["vocab"]),
            context=_size(table["context"]),
            widths=_ascending(table["widths"]),
            prefill_width=_size(table["prefill_width"]),
            chain=_chain(table["chain"], processors),
            fallback=_chain(table["fallback"], [HOST]) if table.get("fallback") else (),
            key_shapes={p: _sizes(caches["key_shape"][p]) for p in processors},
            value_shape=_sizes(caches["value_shape"]),
            opencl_runtime=_text(table["opencl_runtime"]) if carries_runtime else None,
        )
        if facts.widths[0] != 1 or caches.get("dtype") != "float32":
            raise ValueError("no entry point for one token, or caches that are not float32")
        if facts.opencl_runtime is not None and PurePosixPath(facts.opencl_runtime).name != LIBRARY:
            raise ValueError(f"{facts.opencl_runtime!r} is not the OpenCL runtime {LIBRARY}")
        _check_caches(facts)
        for segments in filter(None, (facts.chain, facts.fallback)):
            _check_segments(segments, _size(table["layers"], _MOST_LAYERS))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"manifest.json: models.{role}: {reason}: build the bundle again") from None
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if facts.cache_bytes > available:
        raise UserError(
            f"the KV caches of the {role} need {facts.cache_bytes >> 20} MiB, this machine has {available >> 20} MiB: "
            "compile with a smaller --context"
        )
    return facts


def _check_caches(facts: ModelFacts) -> None:
    """A value cache [1, kv_heads, context, head_dim] and key caches [1, kv_heads, context / l, head_dim, l]."""
    if len(facts.value_shape) != 4 or facts.value_shape[0] != 1 or facts.value_shape[2] != facts.context:
        raise ValueError(f"a value cache of shape {list(facts.value_shape)} does not hold a context of {facts.context}")
    _, heads, rows, width = facts.value_shape
    for shape in facts.key_shapes.values():
        if len(shape) != 5 or (*shape[:2], shape[2] * shape[4], shape[3]) != (1, heads, rows, width):
            raise ValueError(
                f"a key cache of shape {list(shape)} does not fit a value cache of shape {list(facts.value_shape)}"
            )


def _check_segments(segments: tuple[SegmentFacts, ...], layers: int) -> None:
    """Every layer has one cache, every value is computed once, and only what chooses takes a row."""
    cached = [layer for segment in segments for layer in segment.layers]
    if sorted(cached) != list(range(layers)):
        raise ValueError(f"the segments have caches of layers {cached[:20]}, the model has {layers} layers")
    values = [name for segment in segments for name in segment.outputs]
    if len(set(values)) < len(values) or "input_ids" in values:
        raise ValueError(f"a value of {', '.join(values)[:80]} is computed twice")
    if len({(segment.processor, segment.prefix) for segment in segments}) < len(segments):
        raise ValueError("two segments have the same entry points")
    for segment in segments:
        if segment.chooses != ("choice" in segment.outputs) or segment.chooses != ("logits" in segment.outputs):
            raise ValueError(f"`chooses` is {segment.chooses} for a segment with outputs {', '.join(segment.outputs)}")


def _chain(value: Any, processors: list[str]) -> tuple[SegmentFacts, ...]:
    """Segments whose inputs are the ids or come from segments before, and which end with logits and choice."""
    segments, known = [], {"input_ids"}
    for entry in _list(value):
        segment = SegmentFacts(
            processor=_one_of(entry["processor"], processors),
            prefix=_text(entry["prefix"]),
            inputs=_names(entry["inputs"]),
            outputs=_names(entry["outputs"]),
            layers=tuple(_size(layer, _MOST_LAYERS, least=0) for layer in _list(entry["layers"], least=0)),
            chooses=_truth(entry["chooses"]),
            params=tuple(_text(p) for p in _list(entry["params"], least=0)),
        )
        if strange := set(segment.inputs) - known:
            raise ValueError(f"a segment reads {strange.pop()!r}, which none before it computes")
        known |= set(segment.outputs)
        segments.append(segment)
    if not {"logits", "choice"} <= known:
        raise ValueError("the segments do not compute logits and a choice")
    return tuple(segments)


def _size(value: Any, most: int = _MOST, least: int = 1) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r} is not a size from {least} to {most}")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(_size(v) for v in _list(value, 64))


def _ascending(value: Any) -> tuple[int, ...]:
    sizes = _sizes(value)
    if list(sizes) != sorted(set(sizes)):
        raise ValueError(f"{list(sizes)} does not rise")
    return sizes


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{str(value)[:80]!r} is neither true nor false")
    return value


def _list(value: Any, most: int = 1 << 20, least: int = 1) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise ValueError(f"{str(value)[:80]} is not a list of {least} to {most} entries")
    return value


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_text(v) for v in _list(value, 64))


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{str(value)[:80]} is not an object with entries")
    return value


def _one_of(value: Any, known: tuple[str, ...] | list[str]) -> str:
    if value not in known:
        raise ValueError(f"{value!r} is none of {', '.join(known)}")
    return str(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a name")
    return value
