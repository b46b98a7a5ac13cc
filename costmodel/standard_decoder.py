"""The operator list of a decoder of the usual form, from its sizes and switches.

For a model that is known by its configuration only. The form is Llama's (Touvron et al. 2023) with what other families
changed in it, GPT-2's and BLOOM's among them; what does not fit it comes from an ONNX file
(passes/analysis/count_work.py).
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

PRE, POST, BOTH = "pre", "post", "both"
ONE_NORM, TWO_NORMS = "one norm", "two norms"


@dataclass(frozen=True)
class Blocks:
    """Sizes and switches that all layers share.

    Attributes:
        hidden, heads, kv_heads, head_dim, ffn, vocab: sizes.
        format: of every matrix of the layers, and of the embedding.
        head_format: of the head, and of the embedding where they are one matrix; None is `format`.
        packed_qkv, packed_ffn: q, k and v are one matrix multiplication; gate and up are.
        qkv_bias, out_bias, ffn_bias, head_bias: which matrix multiplications have a bias.
        qk_norm: "" none, "head": q and k are normalised by head, "own": each head with weights of its own, "row": as a
            whole.
        qkv_clipped: q, k and v are kept between two numbers.
        layer_norms: norms subtract the mean, too; they are no kernel together with an addition.
        norms: before each block, on what comes out of it, or both.
        first_norm: a norm comes before the first block, too.
        embedding_norm: the embedding's rows are normalised.
        embedding_width: columns of the embedding and rows of the head; 0 is `hidden`, others are projected.
        parallel: "" attention before the feed-forward part; ONE_NORM: both read what one norm makes, or TWO_NORMS.
        gated: a feed-forward part multiplies two products of its input.
        nonlinearity: "silu", "gelu", "relu", "squared_relu" or "xielu".
        positions: rows of a table of learned positions, 0 without.
        alibi: something is added to an attention's scores by the distance of the key.
        softcap: an attention's scores pass through tanh.
        embedding_scaled, residual_scaled, logits_scaled: where a number is multiplied in.
        head_softcap: logits pass through tanh.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    format: Format = field(default_factory=Format)
    head_format: Format | None = None
    packed_qkv: bool = False
    packed_ffn: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    head_bias: bool = False
    qk_norm: str = ""
    qkv_clipped: bool = False
    layer_norms: bool = False
    norms: str = PRE
    first_norm: bool = True
    embedding_norm: bool = False
    embedding_width: int = 0
    parallel: str = ""
    gated: bool = True
    nonlinearity: str = "silu"
    positions: int = 0
    alibi: bool = False
    softcap: bool = False
    embedding_scaled: bool = False
    residual_scaled: bool = False
    logits_scaled: bool = False
    head_softcap: bool = False

    @property
    def norm(self) -> str:
        """The kind of a norm that no addition comes before."""
        return "layer_norm" if self.layer_norms else "rms_norm"

    @property
    def norm_after_addition(self) -> str:
        """The kind of the norm after a block; an RMS norm is one kernel with the block's addition."""
        return "layer_norm" if self.layer_norms else "add_rms_norm"


def standard_decoder(
    name: str,
    blocks: Blocks,
    windows: Sequence[int],
    tied: bool,
    kv: str = DEFAULT_KV,
    turned: Sequence[bool] | None = None,
) -> DecoderSpec:
    """The decoder.

    Args:
        name: for people.
        blocks: its sizes and switches.
        windows: for each layer the tokens that its attention sees, 0 for all.
        tied: embedding and head share one matrix.
        kv: how keys and values are stored, a name of targets/kv_format.py.
        turned: for each layer whether its q and k are turned by their positions (rope); None: all are where positions
            come in no other way.

    Raises:
        UserError: sizes contradict each other.
    """
    for key in ("hidden", "heads", "kv_heads", "head_dim", "ffn", "vocab"):
        if getattr(blocks, key) < 1:
            raise UserError(f"{name}: {key} is {getattr(blocks, key)}; it must be at least 1")
    if blocks.heads % blocks.kv_heads:
        raise UserError(f"{name}: {blocks.heads} heads cannot share {blocks.kv_heads} KV heads evenly")
    if turned is None:
        turned = [not (blocks.positions or blocks.alibi)] * len(windows)
    operators = list(_embedding(blocks, tied))
    for i, window in enumerate(windows):
        operators += _attention(blocks, Part(ATTENTION, i), window, turned[i])
        operators += _ffn(blocks, Part(FFN, i), i + 1 == len(windows))
    operators += _head(blocks)
    return DecoderSpec(name, tuple(operators), tied, kv)


def _embedding(b: Blocks, tied: bool) -> Iterator[Operator]:
    part = Part(EMBEDDING)
    stored = b.format if b.head_format is None or not tied else b.head_format
    yield Operator("embedding", "embedding", part, b.embedding_width or b.hidden, b.vocab, stored)
    if b.embedding_scaled:
        yield Operator("scale", "embedding_scale", part, b.hidden)
    if b.embedding_width:
        yield from _linear("project_in", part, b.embedding_width, b.hidden, b.format, False)
    if b.positions:  # block formats are for what is multiplied
        table = Format() if b.format.quantised else b.format
        yield Operator("positions", "positions", part, b.hidden, b.positions, table)
        yield Operator("add", "positions_add", part, b.hidden)
    if b.embedding_norm:
        yield Operator(b.norm, "embedding_post_norm", part, b.hidden)


def _attention(b: Blocks, part: Part, window: int, turned: bool) -> Iterator[Operator]:
    q, kv = b.heads * b.head_dim, b.kv_heads * b.head_dim
    yield from _before(b, part, "attention")
    if b.packed_qkv:
        yield from _linear("qkv", part, b.hidden, q + 2 * kv, b.format, b.qkv_bias)
        for name, width in (("take_q", q), ("take_k", kv), ("take_v", kv)):
            yield Operator("take", name, part, width)
    for name, width, heads in (("q", q, b.heads), ("k", kv, b.kv_heads), ("v", kv, 0)):
        if not b.packed_qkv:
            yield from _linear(name, part, b.hidden, width, b.format, b.qkv_bias)
        if b.qkv_clipped:
            yield Operator("clip", f"clip_{name}", part, width)
        if not heads:
            continue
        if b.qk_norm:
            groups = 1 if b.qk_norm == "row" else heads
            yield Operator(b.norm, f"{name}_norm", part, width, groups=groups, own=b.qk_norm == "own")
        if turned:
            yield Operator("rope", f"rope_{name}", part, width)
    sizes: dict[str, int] = {"heads": b.heads, "kv_heads": b.kv_heads, "head_dim": b.head_dim, "window": window}
    yield Operator("attention", "attention", part, q, softcap=b.softcap, alibi=b.alibi, **sizes)  # type: ignore[arg-type]
    yield from _linear("o", part, q, b.hidden, b.format, b.out_bias)
    yield from _after(b, part, "attention", b.norms == POST)


def _ffn(b: Blocks, part: Part, last: bool) -> Iterator[Operator]:
    yield from _before(b, part, "ffn")
    if b.packed_ffn:
        yield from _linear("gate_up", part, b.hidden, 2 * b.ffn, b.format, b.ffn_bias)
    for name in ("gate", "up") if b.gated else ("up",):
        if b.packed_ffn:
            yield Operator("take", f"take_{name}", part, b.ffn)
        else:
            yield from _linear(name, part, b.hidden, b.ffn, b.format, b.ffn_bias)
    nonlinearity = f"{b.nonlinearity}_mul" if b.gated else b.nonlinearity
    yield Operator(nonlinearity, nonlinearity, part, b.ffn)
    yield from _linear("down", part, b.ffn, b.hidden, b.format, b.ffn_bias)
    yield from _after(b, part, "ffn", b.norms == POST and not last)


def _before(b: Blocks, part: Part, name: str) -> Iterator[Operator]:
    """The norm before a block; one that two blocks read belongs to what comes before them."""
    first = part == Part(ATTENTION, 0)
    if b.norms == POST or (first and not b.first_norm) or (b.parallel == ONE_NORM and part.kind == FFN):
        return
    if b.parallel == ONE_NORM:
        before, name = (Part(EMBEDDING), "embedding_post") if first else (Part(FFN, part.layer - 1), "ffn")
        yield Operator(b.norm, f"{name}_norm", before, b.hidden)
    else:
        yield Operator(b.norm if first else b.norm_after_addition, f"{name}_norm", part, b.hidden)


def _after(b: Blocks, part: Part, name: str, add: bool) -> Iterator[Operator]:
    """What a block's result passes on its way to the residual stream; most additions are the next norm's kernel's."""
    if b.norms != PRE:
        yield Operator(b.norm, f"{name}_post_norm", part, b.hidden)
    if b.residual_scaled:
        yield Operator("scale", f"{name}_scale", part, b.hidden)
    if add or b.layer_norms:
        yield Operator("add", f"{name}_add", part, b.hidden)


def _head(b: Blocks) -> Iterator[Operator]:
    part, stored = Part(HEAD), b.format if b.head_format is None else b.head_format
    yield Operator(b.norm_after_addition, "final_norm", part, b.hidden)
    if b.embedding_width:
        yield from _linear("project_out", part, b.hidden, b.embedding_width, b.format, False)
    yield from _linear("head", part, b.embedding_width or b.hidden, b.vocab, stored, b.head_bias)
    if b.logits_scaled:
        yield Operator("scale", "logits_scale", part, b.vocab)
    if b.head_softcap:
        for kind, name in (("scale", "cap_down"), ("tanh", "cap"), ("scale", "cap_up")):
            yield Operator(kind, name, part, b.vocab)
    yield Operator("argmax", "argmax", part, b.vocab)


def _linear(name: str, part: Part, k: int, columns: int, stored: Format, bias: bool) -> Iterator[Operator]:
    yield Operator("linear", name, part, columns, k, stored)
    if bias:
        yield Operator("bias", f"{name}_bias", part, columns)
