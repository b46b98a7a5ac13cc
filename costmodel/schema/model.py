"""What the manifest says of a model: its files, sizes, entry points, and the segments that it runs as."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from costmodel.format import FLOAT, INT8
from costmodel.place import Place, ProcessorName
from costmodel.schema.record import Ascending, Entries, OneOf, Record, SchemaError, Within, check_sha256
from targets.backend import HOST, backend
from targets.kv_format import KV_FORMATS

MOST_LAYERS = 4096
MOST_SLOTS = 64
EXIT = "exit_"
Role = Annotated[str, OneOf(("target", "draft"))]
Size = Annotated[int, Within(1, 1 << 31)]
Sizes = Annotated[tuple[Size, ...], Entries(1, 64)]
Widths = Annotated[tuple[Size, ...], Entries(1, 64), Ascending()]
Names = Annotated[tuple[str, ...], Entries(1, 64)]
RowWidths = Annotated[tuple[Size, ...], Entries(0, 64), Ascending()]
Slots = Annotated[int, Within(1, MOST_SLOTS)]
Layer = Annotated[int, Within(0, MOST_LAYERS)]
KvName = Annotated[str, OneOf(tuple(KV_FORMATS))]


@dataclass(frozen=True)
class WeightSlice(Record):
    """A part of a stored weight: what a segment has of it where a matrix is cut by columns or heads.

    Attributes:
        name: of the stored tensor.
        axis: of the stored layout; 0 counts panels of columns, so that a part of it is read where the file is mapped.
        start, end: from and to, excluded.
    """

    unknown_keys_refused: ClassVar[bool] = True
    name: str
    axis: Annotated[int, Within(0, 7)]
    start: Annotated[int, Within(0, 1 << 31)]
    end: Size

    def __post_init__(self) -> None:
        """Refuse an empty part."""
        if self.start >= self.end:
            raise SchemaError(f"{self.start} to {self.end} of {self.name[:60]!r} is nothing")


@dataclass(frozen=True)
class SegmentFacts(Record):
    """Operators that run on one processor, one after the other.

    Attributes:
        processor: its kind, a name of targets/backend.py.
        prefix: of its entry points: <prefix>step_<n>, <prefix>prefill_<n>.
        inputs: what comes in: "input_ids", or outputs of segments before.
        outputs: what goes out; "logits" and "choice" are the model's.
        layers: whose KV caches it has.
        chooses: its prefill entry takes the row to compute logits for.
        params: its weights in call order: names of stored tensors, or parts of them.
    """

    unknown_keys_refused: ClassVar[bool] = True
    processor: ProcessorName
    prefix: str
    inputs: Names
    outputs: Names
    layers: tuple[Layer, ...]
    chooses: bool
    params: tuple[str | WeightSlice, ...]


@dataclass(frozen=True)
class CacheFacts(Record):
    """The KV caches of each layer.

    Attributes:
        dtype: of their numbers.
        key_shape: shape of a layer's key cache, by processor: [slots, kv_heads, context / l, head_dim + s, l]; s rows
            of a tile hold scales (targets/kv_format.py).
        value_shape: of its value cache: [slots, kv_heads, context, head_dim].
    """

    unknown_keys_refused: ClassVar[bool] = True
    dtype: KvName
    key_shape: dict[ProcessorName, Sizes]
    value_shape: Sizes


@dataclass(frozen=True)
class QuantisedFacts(Record):
    """How `compile --quantise` made a model's weights of float ones, so that `verify` can make them again.

    Formats are "int8:32" (weights, block) or "float" for what stayed as it was.

    Attributes:
        export_sha256: of the export (hetero_sd/quantisation/recipes.py).
        matrices: format of the layers' matrix multiplications.
        head_format: of the head, and of an embedding that is the same matrix.
        embedding_format: of an embedding that is a matrix of its own.
        by_name: [pattern, format] of those that were chosen by name.
    """

    unknown_keys_refused: ClassVar[bool] = True
    export_sha256: str
    matrices: str
    head_format: str
    embedding_format: str
    by_name: Annotated[tuple[tuple[str, str], ...], Entries(0, 4096)]

    def __post_init__(self) -> None:
        """Refuse what is no SHA-256 in hex digits."""
        check_sha256("export_sha256", self.export_sha256)


@dataclass(frozen=True)
class ModelFacts(Record):
    """One entry of the manifest's ``models``.

    Attributes:
        role: "target" or "draft".
        libraries: path of the library in the bundle, by processor; of first layers the target's.
        weights: path of the weights.
        layers: decoder layers.
        vocab: token ids 0 to vocab - 1.
        context: rows of the KV caches.
        widest_sum: the larger of hidden and FFN size, which bounds roundoff.
        widths: entry points step_<n>, ascending; 1 is among them.
        prefill_width: entry points prefill_<n>, and fill_<n>, which has no results but rows of the caches.
        weight_dtype: stored format of most weights, for people.
        place: where its parts run.
        chain: the segments, in order.
        fallback: the whole model on the CPU, for when the GPU fails; empty where the bundle has no such variant.
        caches: shapes of the KV caches.
        activations: what block-quantised matrix multiplications read: floats, or int8 codes made of them.
        opencl_runtime: path in the bundle of the library that gives TVM the GPU; None where no segment needs one.
        quantised: how its weights were quantised; None: they are the export's own.
        row_widths: entry points rows_<n>, whose rows are of several sequences; empty where the caches hold one.
        long_prefill_width: of a second pair of entry points like those of prefill_width, or None.
        early_exit: it is the target's first layers and its head: its entry points are exit_<layers>_step_<n> and so on,
            in the target's libraries, and its weights are the target's.
    """

    unknown_keys_refused: ClassVar[bool] = True
    role: Role
    libraries: Annotated[dict[ProcessorName, str], Entries(1)]
    weights: str
    layers: Annotated[int, Within(1, MOST_LAYERS)]
    vocab: Size
    context: Size
    widest_sum: Size
    widths: Widths
    prefill_width: Size
    weight_dtype: str
    place: Place
    chain: Annotated[tuple[SegmentFacts, ...], Entries(1)]
    fallback: tuple[SegmentFacts, ...]
    caches: CacheFacts
    activations: Annotated[str, OneOf((FLOAT, INT8))] = FLOAT
    opencl_runtime: str | None = None
    quantised: QuantisedFacts | None = None
    row_widths: RowWidths = ()
    long_prefill_width: Size | None = None
    early_exit: bool = False

    def __post_init__(self) -> None:
        """Hold the fields against each other.

        Raises:
            SchemaError: they contradict each other.
        """
        if self.widths[0] != 1:
            raise SchemaError("no entry point for one token")
        if any(backend(kind).carries_runtime for kind in self.libraries) and self.opencl_runtime is None:
            raise SchemaError("opencl_runtime is missing")
        if set(self.caches.key_shape) != set(self.libraries):
            raise SchemaError("the caches and the libraries are not of the same processors")
        _check_caches(self.caches, self.context)
        _check_segments(self.chain, self.layers, tuple(self.libraries))
        if self.fallback:
            _check_segments(self.fallback, self.layers, (HOST,) if HOST in self.libraries else ())
        if self.slots > MOST_SLOTS or (self.slots > 1) != bool(self.row_widths):
            raise SchemaError(f"caches of {self.slots} slots do not fit row_widths {list(self.row_widths)}")
        if self.long_prefill_width is not None and not self.prefill_width < self.long_prefill_width <= self.context:
            raise SchemaError(f"long_prefill_width is {self.long_prefill_width}")
        for segment in (*self.chain, *self.fallback):
            if self.early_exit != segment.prefix.startswith(EXIT) or not segment.prefix.startswith(self.entries):
                raise SchemaError(
                    f"a segment has entry points {segment.prefix[:40]}step_<n>, not {self.entries}step_<n>"
                )

    @property
    def entries(self) -> str:
        """What the names of its entry points begin with, before that of a segment: "" or "exit_<layers>_"."""
        return f"{EXIT}{self.layers}_" if self.early_exit else ""

    @property
    def prefill_widths(self) -> tuple[int, ...]:
        """Tokens of prompt chunks, ascending."""
        return (self.prefill_width, *((self.long_prefill_width,) if self.long_prefill_width else ()))

    @property
    def slots(self) -> int:
        """Sequences that the caches hold."""
        return self.caches.value_shape[0]

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of its files in the bundle."""
        return (*self.libraries.values(), self.weights, *((self.opencl_runtime,) if self.opencl_runtime else ()))

    def compiled_json(self) -> dict[str, Any]:
        """What its libraries were compiled for: all but the paths, which the hashes of the files check."""
        paths = ("libraries", "weights", "opencl_runtime")
        return {key: value for key, value in self.to_json().items() if key not in paths}

    @property
    def cache_bytes(self) -> int:
        """Memory of the chain's caches."""
        value = math.prod(self.caches.value_shape)
        keys = {p: math.prod(shape) for p, shape in self.caches.key_shape.items()}
        return KV_FORMATS[self.caches.dtype].bytes * sum(
            len(s.layers) * (keys[s.processor] + value) for s in self.chain
        )


def _check_caches(caches: CacheFacts, context: int) -> None:
    """Values [slots, kv_heads, context, head_dim], keys [slots, kv_heads, context / l, head_dim + s, l]."""
    value = caches.value_shape
    if len(value) != 4 or value[2] != context:
        raise SchemaError(f"a value cache of shape {list(value)} does not hold a context of {context}")
    slots, heads, rows, width = value
    width += KV_FORMATS[caches.dtype].scale_rows
    for shape in caches.key_shape.values():
        if len(shape) != 5 or (*shape[:2], shape[2] * shape[4], shape[3]) != (slots, heads, rows, width):
            raise SchemaError(f"a key cache of shape {list(shape)} does not fit a value cache of shape {list(value)}")


def _check_segments(segments: tuple[SegmentFacts, ...], layers: int, processors: tuple[str, ...]) -> None:
    """Inputs are the ids or come from segments before; each layer has one cache, each value is computed once."""
    known = {"input_ids"}
    for segment in segments:
        if segment.processor not in processors:
            raise SchemaError(f"a segment runs on {segment.processor}, for which there is no library")
        if strange := sorted(set(segment.inputs) - known):
            raise SchemaError(f"a segment reads {strange[0][:80]!r}, which none before it computes")
        known |= set(segment.outputs)
        if segment.chooses != ("choice" in segment.outputs) or segment.chooses != ("logits" in segment.outputs):
            outputs = ", ".join(segment.outputs)[:80]
            raise SchemaError(f"`chooses` is {segment.chooses} for a segment with outputs {outputs}")
    if not {"logits", "choice"} <= known:
        raise SchemaError("the segments do not compute logits and a choice")
    cached = [layer for segment in segments for layer in segment.layers]
    if sorted(cached) != list(range(layers)):
        raise SchemaError(f"the segments have caches of layers {cached[:20]}, the model has {layers} layers")
    values = [name for segment in segments for name in segment.outputs]
    if len(set(values)) < len(values) or "input_ids" in values:
        raise SchemaError(f"a value of {', '.join(values)[:80]} is computed twice")
    if len({(segment.processor, segment.prefix) for segment in segments}) < len(segments):
        raise SchemaError("two segments have the same entry points")
