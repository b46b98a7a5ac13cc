"""What a canonical decoder is, read off its graph and checked for consistency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from costmodel.place import EMBEDDING, HEAD, Part
from passes.onnx.label_parts import part_of
from passes.onnx.pass_context import Importing, attribute
from passes.onnx.prove.weight_expression import initializer_of
from passes.onnx.rewrite.blocks_of_columns import BNB4_TABLES
from passes.onnx.weight_sizes import LINEAR, linear_size, table_size
from targets.errors import UserError


@dataclass(frozen=True)
class RopeFacts:
    """The rotation: how many elements of a head rotate, which pair up, and where positions come from.

    Attributes:
        rotary_dim: elements of a head that rotate.
        interleaved: neighbours pair up instead of halves.
        positions: "input" (position_ids), "past" (past length + 0, 1, ...) or "mask" (tokens counted). Each of them is
            past + 0, 1, ... for unpadded input; that was proven, except for "input", where the caller supplies it.
    """

    rotary_dim: int
    interleaved: bool
    positions: str


@dataclass(frozen=True)
class DecoderFacts:
    """Sizes and formats of one decoder.

    Attributes:
        layers, heads, kv_heads, head_dim, hidden, ffn, vocab: sizes; ffn is the width of the
            (widest) feed-forward part.
        context: positions the rope tables cover.
        rope: None if no layer rotates.
        tied: embedding and head read the same initialiser.
        weight_dtype: "float32", "float16", "bfloat16", "int4", "int8", "nf4" or "fp4": of the largest share of the
            bytes of matrices.
        family: hint for people: "llama", "qwen2" (biased q, k, v), "qwen3" (q/k norm), "mistral" (a window), "phi3"
            (packed projections), "gemma2" (scaled embedding, soft caps), "gemma3" (q/k norm), "gemma3n" (streams),
            "gemma" (neither), "gpt2" (layer norms), "gpt-neox" (layer norms and rotated positions), "opt" and
            "nemotron" (the same two with a ReLU), "bloom" and "mpt" (layer norms and ALiBi, the first with a norm of
            the embedding), "granite" (scaled residuals), "olmo2" (norms of what a block computed).
        window: the largest sliding window of any layer in tokens, 0: none.
        batch: fixed batch size, or None if it is free.
        padding: what attention_mask may hide: "left and right", "right" or "none" (the mask reads none).
        int8_activations: every block-quantised matrix multiplication of the file allows int8 activations, as
            MatMulNBits at accuracy_level 4 does, or an export that rounds its activations to 8 bits itself.
        alibi: scores fall with the distance of a key, by another slope in each head.
        copies: (layer, another one whose keys and values it reads): its cache holds the same.
        many_tokens_after_past: whether the export itself can take several tokens after a past; the canonical one can.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    vocab: int
    context: int
    rope: RopeFacts | None
    tied: bool
    weight_dtype: str
    family: str
    window: int = 0
    batch: int | None = None
    padding: str = "left and right"
    many_tokens_after_past: bool = True
    int8_activations: bool = False
    alibi: bool = False
    copies: tuple[tuple[int, int], ...] = ()


def decoder_facts(imp: Importing) -> DecoderFacts:
    """The facts of a canonical graph.

    Raises:
        UserError: the graph contradicts itself or the cache inputs; the message says where.
    """
    nodes = list(imp.graph)
    attentions = [n for n in nodes if n.op_type == "Attention"]
    layers = imp.facts.layers
    _agree("layers", {layers, len(attentions)}, "cache inputs and Attention nodes")
    heads = _agree("query heads", {attribute(n, "q_num_heads") for n in attentions}, "the layers")
    embedding = embedding_of(imp.graph)
    head = _producer_of_logits(imp)
    vocab, width = table_size(embedding)
    head_width, head_vocab = linear_size(head)
    _agree("vocabulary", {vocab, head_vocab}, "embedding and logits")
    _agree("width", {width, head_width}, "embedding and head")
    after = [user for n in attentions for user, _ in n.outputs[0].uses() if user.op_type in LINEAR]
    hidden = _agree("hidden size", {linear_size(user)[1] for user in after} or {width}, "the layers")
    gates = [n for n in nodes if n.op_type in ("Mul", "Gelu", "Relu", "SquaredRelu", "XIELU") and not by_layer(n)]
    ffn = {linear_size(user)[0] for n in gates for user, _ in n.outputs[0].uses() if user.op_type in LINEAR}
    if any(n.op_type == "AltUpPredict" for n in nodes):  # a model cut out of a larger one has layers of several widths
        ffn = {max(ffn, default=0)}
    return DecoderFacts(
        layers=layers,
        heads=heads,
        kv_heads=imp.facts.kv_heads,
        head_dim=imp.facts.head_dim,
        hidden=hidden,
        ffn=_agree("feed-forward width", ffn, "the layers"),
        vocab=vocab,
        context=imp.context,
        rope=_rope(imp, nodes),
        tied=_weight(embedding) is _weight(head),
        weight_dtype=_weight_dtype(nodes),
        family=_family(nodes, embedding),
        window=max((attribute(n, "window", 0) for n in nodes if n.op_type == "CausalMask"), default=0),
        batch=imp.facts.batch,
        padding=_padding(imp, nodes),
        many_tokens_after_past=not imp.facts.single_token_decode,
        int8_activations=imp.facts.int8_activations,
        alibi=any(n.op_type == "Alibi" for n in nodes),
        copies=tuple(sorted(imp.facts.copies.items())),
    )


def _agree(what: str, values: set[Any], where: str) -> Any:
    if not values:
        raise UserError(f"{where} have no {what}: each layer of a decoder has attention and a feed-forward part")
    if len(values) > 1:
        raise UserError(f"{where} disagree about the {what}: {', '.join(map(str, sorted(values)))}")
    return next(iter(values))


def embedding_of(graph: Any) -> Any:
    """The node that takes rows of a weight by input_ids; a table of positions is another one.

    Raises:
        UserError: there is none, or there are several.
    """
    found = [n for n in graph if n.op_type in ("Gather", "GatherBlockQuantized") and n.inputs[1].name == "input_ids"]
    found = [n for n in found if not of_layers(n)]
    if len(found) != 1:
        raise UserError(f"input_ids choose rows of {len(found)} tables; a decoder has one embedding")
    return found[0]


def of_layers(table: Any) -> bool:
    """Whether the rows of a table are columns for each layer: they are split before a matrix is multiplied by them."""
    todo = list(table.outputs)
    while todo:
        users = [user for user, _ in todo.pop().uses()]
        if any(user.op_type == "Split" for user in users):
            return True
        todo += [user.outputs[0] for user in users if user.op_type in ("Add", "Mul")]
    return False


def _producer_of_logits(imp: Importing) -> Any:
    logits = next(v for v in imp.graph.outputs if v.name == "logits")
    node = logits.producer()
    while node is not None and node.op_type in ("Add", "Mul", "Tanh"):  # a bias, a scale or a soft cap
        node = next((v.producer() for v in node.inputs if v.producer() is not None), None)
    if node is None or node.op_type not in LINEAR:
        raise UserError(
            "the logits are not the last norm's matrix multiplication with a head: export the decoder with its head "
            "(exclude_lm_head=false in genai's builder)"
        )
    part = part_of(node)
    assert part is not None, "label_parts comes first"
    if part.kind != HEAD:
        raise UserError(
            "its logits come from inside a layer, not from a matrix multiplication after the last one: the export took "
            "another for the head; export it again"
        )
    return node


def by_layer(gate: Any) -> bool:
    """Whether what a gate multiplies are a token's own numbers for this layer, taken from what no layer computed."""
    makers = [v.producer() for v in gate.inputs if v.producer() is not None and v.producer().op_type == "Split"]
    sources = [m.inputs[0].producer() for m in makers]
    return any(source is not None and part_of(source) == Part(EMBEDDING) for source in sources)


def _weight(node: Any) -> Any:
    """The initialiser of a matrix multiplication or of the embedding."""
    return initializer_of(node.inputs[0 if node.op_type in ("Gather", "GatherBlockQuantized") else 1])


def _weight_dtype(nodes: list[Any]) -> str:
    sizes: dict[str, int] = {}
    for node in nodes:
        if node.op_type in LINEAR:
            tensor = _weight(node).const_value
            name = f"int{attribute(node, 'bits', 4)}" if node.op_type == "MatMulNBits" else tensor.dtype.name.lower()
            name = BNB4_TABLES[attribute(node, "quant_type")] if node.op_type == "MatMulBnb4" else name
            name = {"float": "float32"}.get(name, name)
            sizes[name] = sizes.get(name, 0) + tensor.nbytes
    return max(sizes, key=lambda name: sizes[name])


def _rope(imp: Importing, nodes: list[Any]) -> RopeFacts | None:
    ropes = [n for n in nodes if n.op_type == "RotaryEmbedding"]
    if not ropes:
        return None
    dims = {attribute(n, "rotary_embedding_dim") for n in ropes}
    positions = {n.inputs[3] for n in ropes}
    value = _agree("positions", positions, "the rotations")
    if value.is_graph_input():
        kind = "input"
    else:
        kind = "mask" if value.producer().inputs[0] is not None else "past"
    interleaved = _agree("pairs of the rotation", {attribute(n, "interleaved", 0) for n in ropes}, "the layers")
    return RopeFacts(_agree("rotated elements", dims, "the layers"), bool(interleaved), kind)


def _family(nodes: list[Any], embedding: Any) -> str:
    norms = [n for n in nodes if n.op_type == "RMSNormalization"]
    by_head = any(n.inputs[0].producer() is not None and n.inputs[0].producer().op_type == "Reshape" for n in norms)
    if not norms:
        rotated = any(n.op_type == "RotaryEmbedding" for n in nodes)
        if any(n.op_type in ("Relu", "SquaredRelu") for n in nodes):
            return "nemotron" if rotated else "opt"
        if any(n.op_type == "Alibi" for n in nodes):
            first = {user.op_type for user, _ in embedding.outputs[0].uses()}
            return "bloom" if first == {"LayerNormalization"} else "mpt"
        return "gpt-neox" if rotated else "gpt2"
    if any(n.op_type == "Gelu" for n in nodes) and any(embedding.outputs[0] in n.inputs for n in nodes if _scales(n)):
        if any(n.op_type == "AltUpPredict" for n in nodes):
            return "gemma3n"
        capped = any(attribute(n, "softcap", 0.0) for n in nodes if n.op_type == "Attention")
        return "gemma2" if capped else "gemma3" if by_head else "gemma"
    if any(_scales(n) and any(u.op_type == "Add" for u, _ in n.outputs[0].uses()) for n in nodes):
        return "granite"
    if any(n.inputs[0].producer().op_type in LINEAR for n in norms):
        return "olmo2"
    if by_head:
        return "qwen3"
    biased = [n for n in nodes if n.op_type == "Add" and any(v.const_value is not None for v in n.inputs)]
    biased += [n for n in nodes if n.op_type == "MatMulNBits" and len(n.inputs) > 5 and n.inputs[5] is not None]
    if biased:
        return "qwen2"
    if any(n.op_type == "Split" and len(n.outputs) == 2 for n in nodes):
        return "phi3"
    return "mistral" if any(attribute(n, "window", 0) for n in nodes if n.op_type == "CausalMask") else "llama"


def _scales(node: Any) -> bool:
    return node.op_type == "Mul" and any(v.const_value is not None for v in node.inputs)


def _padding(imp: Importing, nodes: list[Any]) -> str:
    if any(n.inputs[0] is None for n in nodes if n.op_type == "CausalMask"):
        return "none"
    return imp.facts.padding
