"""The operator list of Gemma 3n's text decoder from its sizes: AltUp's streams, Laurel, embeddings for each layer.

AltUp: Baykal et al. 2023; Laurel: Menghani et al. 2024. Layers that read another layer's keys and values compute none;
each keeps a copy of them (passes/onnx/rewrite/unshare_caches.py), which its attention is priced with.
A layer's router, with its norm, is read twice, and counts where it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from costmodel.decoder import DecoderSpec
from costmodel.format import Format
from costmodel.operators import Operator
from costmodel.place import ATTENTION, EMBEDDING, FFN, HEAD, Part
from targets.errors import UserError
from targets.kv_format import DEFAULT_KV


@dataclass(frozen=True)
class Layer:
    """What may differ from layer to layer.

    Attributes:
        ffn: width of the feed-forward part.
        window: tokens that its attention sees, 0 for all.
        sparse: only gates far above the mean of a row are kept.
        shares: it reads another layer's keys and values.
    """

    ffn: int
    window: int
    sparse: bool
    shares: bool


@dataclass(frozen=True)
class StreamBlocks:
    """Sizes and switches that all layers share.

    Attributes:
        hidden, heads, kv_heads, head_dim, vocab: sizes.
        streams: residual streams, `active` the one that layers read.
        laurel: width between Laurel's two matrix multiplications.
        by_layer: numbers of a token that a layer has for itself.
        format: of every matrix of the layers, and of the embedding.
        head_format: of the head, and of the embedding where they are one matrix; None is `format`.
        scaled: what is corrected is scaled by column before a layer's own numbers gate it.
        head_softcap: logits pass through tanh.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    streams: int
    active: int
    laurel: int
    by_layer: int
    format: Format = field(default_factory=Format)
    head_format: Format | None = None
    scaled: bool = True
    head_softcap: bool = True

    @property
    def factors(self) -> Format:
        """The format of a matrix with a row for each stream: no block divides so few."""
        return Format() if self.format.block and self.streams % self.format.block else self.format


def stream_decoder(
    name: str, b: StreamBlocks, layers: Sequence[Layer], tied: bool, kv: str = DEFAULT_KV
) -> DecoderSpec:
    """The decoder.

    Raises:
        UserError: sizes contradict each other.
    """
    if b.streams < 2 or not 0 <= b.active < b.streams:
        raise UserError(f"{name}: stream {b.active} of {b.streams} is active")
    operators = list(_embedding(b, len(layers), tied))
    for i, layer in enumerate(layers):
        operators += _attention(b, Part(ATTENTION, i), layer)
        operators += _ffn(b, Part(FFN, i), layer)
    return DecoderSpec(name, (*operators, *_head(b)), tied, kv)


def _embedding(b: StreamBlocks, layers: int, tied: bool) -> Iterator[Operator]:
    part, rows = Part(EMBEDDING), layers * b.by_layer
    stored = b.format if b.head_format is None or not tied else b.head_format
    yield Operator("embedding", "embedding", part, b.hidden, b.vocab, stored)
    yield Operator("scale", "embedding_scale", part, b.hidden)
    for i in range(1, b.streams):
        yield Operator("linear", "stream_in", part, b.hidden, b.hidden, b.format)
        yield Operator("match_magnitude", "match_magnitude", part, b.hidden)
        yield Operator("join_columns", "join_columns", part, (i + 1) * b.hidden)
    yield Operator("linear", "layers_in", part, rows, b.hidden, b.format)
    yield Operator("scale", "layers_in_scale", part, rows)
    yield Operator("rms_norm", "layers_norm", part, rows, groups=layers)
    yield Operator("embedding_by_layer", "embedding_by_layer", part, rows, b.vocab, b.format)
    yield Operator("scale", "layers_scale", part, rows)
    yield Operator("add", "layers_add", part, rows)
    yield Operator("scale", "layers_sum_scale", part, rows)


def _router(b: StreamBlocks, part: Part, norm: str) -> Iterator[Operator]:
    yield Operator(norm, "router_norm", part, b.hidden)
    yield Operator("scale", "router_scale", part, b.hidden)
    yield Operator("linear", "router", part, b.streams, b.hidden, b.format)
    yield Operator("tanh", "router_tanh", part, b.streams)


def _attention(b: StreamBlocks, part: Part, layer: Layer) -> Iterator[Operator]:
    q, kv, s = b.heads * b.head_dim, b.kv_heads * b.head_dim, b.streams
    if part.layer:  # the first layer has the streams apart
        yield Operator("take", "take_stream", part, b.hidden)
    yield from _router(b, part, "rms_norm")
    yield Operator("linear", "predict_factors", part, s * s, s, b.factors)
    yield Operator("altup_predict", "altup_predict", part, s * b.hidden, groups=s)
    yield Operator("take", "take_stream", part, b.hidden)
    yield Operator("rms_norm", "attention_norm", part, b.hidden)
    for name, width, heads in (("q", q, b.heads), ("k", kv, b.kv_heads), ("v", kv, b.kv_heads)):
        if name != "q" and layer.shares:
            continue
        yield Operator("linear", name, part, width, b.hidden, b.format)
        yield Operator("rms_norm", f"{name}_norm", part, width, groups=heads)
        if name != "v":
            yield Operator("rope", f"rope_{name}", part, width)
    sizes = {"heads": b.heads, "kv_heads": b.kv_heads, "head_dim": b.head_dim, "window": layer.window}
    yield Operator("attention", "attention", part, q, **sizes)  # type: ignore[arg-type]
    yield Operator("linear", "o", part, b.hidden, q, b.format)
    yield Operator("rms_norm", "attention_post_norm", part, b.hidden)
    yield Operator("add", "attention_add", part, b.hidden)
    yield Operator("linear", "laurel_down", part, b.laurel, b.hidden, b.format)
    yield Operator("linear", "laurel_up", part, b.hidden, b.laurel, b.format)
    yield Operator("rms_norm", "laurel_norm", part, b.hidden)
    yield Operator("add", "laurel_add", part, b.hidden)
    yield Operator("add", "both_add", part, b.hidden)
    yield Operator("scale", "attention_scale", part, b.hidden)


def _ffn(b: StreamBlocks, part: Part, layer: Layer) -> Iterator[Operator]:
    yield Operator("rms_norm", "ffn_norm", part, b.hidden)
    yield Operator("linear", "gate", part, layer.ffn, b.hidden, b.format)
    if layer.sparse:
        yield Operator("gaussian_top_k", "gaussian_top_k", part, layer.ffn)
    yield Operator("linear", "up", part, layer.ffn, b.hidden, b.format)
    yield Operator("gelu_mul", "gelu_mul", part, layer.ffn)
    yield Operator("linear", "down", part, b.hidden, layer.ffn, b.format)
    yield Operator("rms_norm", "ffn_post_norm", part, b.hidden)
    yield from _router(b, part, "add_rms_norm")
    yield Operator("linear", "correct_factors", part, b.streams, b.streams, b.factors)
    yield Operator("altup_correct", "altup_correct", part, b.streams * b.hidden, groups=b.streams)
    yield Operator("take", "take_stream", part, b.hidden)
    if b.scaled:
        yield Operator("scale_columns", "scale_columns", part, b.hidden)
    yield Operator("linear", "layer_gate", part, b.by_layer, b.hidden, b.format)
    yield Operator("take", "take_layer", part, b.by_layer)
    yield Operator("gelu_mul", "layer_gelu_mul", part, b.by_layer)
    yield Operator("linear", "layer_down", part, b.hidden, b.by_layer, b.format)
    yield Operator("rms_norm", "layer_post_norm", part, b.hidden)
    yield Operator("altup_add", "altup_add", part, b.streams * b.hidden, groups=b.streams)


def _head(b: StreamBlocks) -> Iterator[Operator]:
    part = Part(HEAD)
    for i in range(b.streams):
        yield Operator("take", "take_stream", part, b.hidden)
        if i:
            yield Operator("linear", "stream_out", part, b.hidden, b.hidden, b.format)
            yield Operator("match_magnitude", "match_magnitude", part, b.hidden)
            yield Operator("add", "streams_add", part, b.hidden)
    yield Operator("scale", "streams_mean", part, b.hidden)
    yield Operator("rms_norm", "final_norm", part, b.hidden)
    yield Operator("linear", "head", part, b.vocab, b.hidden, b.format if b.head_format is None else b.head_format)
    if b.head_softcap:
        for kind, name in (("scale", "cap_down"), ("tanh", "cap"), ("scale", "cap_up")):
            yield Operator(kind, name, part, b.vocab)
    yield Operator("argmax", "argmax", part, b.vocab)
