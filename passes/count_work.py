"""Canonical ONNX decoder -> DecoderShape: the joint between the graph and the arithmetic of its cost.

Sizes come from the products themselves, so a graph with packed projections, biases or layers in different formats is
counted as it is. Nothing is changed and no weight is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from costmodel.shape import DecoderShape, Format, Layer, Product
from passes.import_onnx import Decoder
from passes.import_onnx.check_vocabulary import initializer_of
from passes.import_onnx.facts import embedding_of
from passes.import_onnx.state import attribute, describe
from targets.errors import UserError

_PRODUCTS = ("MatMul", "MatMulNBits")
_NORMS = ("RMSNormalization", "LayerNormalization")


def count_work(decoder: Decoder, name: str) -> DecoderShape:
    """The shape of a decoder, its weights as the kernels store them.

    Args:
        decoder: in canonical form.
        name: for messages, usually the file's.
    """
    facts, nodes = decoder.facts, list(decoder.model.graph)
    attentions = [node for node in nodes if node.op_type == "Attention"]
    order = {id(node): i for i, node in enumerate(nodes)}
    products = [node for node in nodes if node.op_type in _PRODUCTS]
    inputs = [_products_before(node) for node in attentions]
    head, taken = products[-1], {id(p) for group in inputs for p in group}
    norms = [node for node in nodes if node.op_type in _NORMS and not _by_head(node)]
    tables = [node for node in nodes if _reads_table(node)]
    embedding = embedding_of(decoder.model.graph)
    layers = []
    for i, node in enumerate(attentions):
        end = order[id(attentions[i + 1])] if i + 1 < len(attentions) else len(nodes)
        rest = [p for p in products if order[id(node)] < order[id(p)] < end and id(p) not in taken and p is not head]
        layers.append(_layer(node, inputs[i], rest, norms, len(attentions)))
    positions = [_size(node.inputs[0])[0] for node in tables if node is not embedding]
    return DecoderShape(
        name=name,
        heads=facts.heads,
        kv_heads=facts.kv_heads,
        head_dim=facts.head_dim,
        hidden=facts.hidden,
        ffn=facts.ffn,
        vocab=facts.vocab,
        layers=tuple(layers),
        embedding=_embedding_format(embedding),
        head=_product("head", head),
        tied=facts.tied,
        position_rows=sum(positions),
        embedding_scaled=any(user.op_type == "Mul" for user, _ in embedding.outputs[0].uses()),
        head_softcap=any(node.op_type == "Tanh" and order[id(node)] > order[id(head)] for node in nodes),
    )


def _layer(attention: Any, before: list[Any], after: list[Any], norms: list[Any], layers: int) -> Layer:
    """Products around one attention: those it reads, then o, gate and up, down; every layer has as many norms."""
    if len(after) not in (3, 4) or len(before) not in (1, 3):
        raise UserError(
            f"a layer has {len(before)} products before its attention and {len(after)} after it; 3 or one packed, then "
            "o, one or two of the feed-forward block and its last are known"
        )
    out, *ffn, down = after
    in_names = ("qkv",) if len(before) == 1 else ("q", "k", "v")
    packed = len(ffn) == 1 and _size_of(ffn[0])[1] == 2 * _size_of(down)[0]
    ffn_names = ("gate", "up") if len(ffn) == 2 else ("gate_up",) if packed else ("up",)
    mask = attention.inputs[3].producer() if attention.inputs[3] is not None else None
    return Layer(
        attention_in=tuple(_product(n, p) for n, p in zip(in_names, before, strict=True)),
        out=_product("o", out),
        ffn_in=tuple(_product(n, p) for n, p in zip(ffn_names, ffn, strict=True)),
        down=_product("down", down),
        window=0 if mask is None else int(attribute(mask, "window", 0)),
        qk_norm=_passes(attention.inputs[0], "RMSNormalization"),
        norms=(len(norms) - 1) // layers,
        softcap=float(attribute(attention, "softcap", 0.0)) > 0,
        rope=_passes(attention.inputs[0], "RotaryEmbedding"),
        norm_bias=norms[0].op_type == "LayerNormalization" and _given(norms[0], 2),
        activation="gelu" if _activation(down).op_type == "Gelu" else "silu",
    )


def _products_before(attention: Any) -> list[Any]:
    """The products that q, k and v come from, in that order; one where they are packed.

    Raises:
        UserError: one of them comes from no product.
    """
    found: dict[int, Any] = {}
    for value in attention.inputs[:3]:
        *_, node = _way_back(value)
        if node is None or node.op_type not in _PRODUCTS:
            raise UserError(f"{describe(attention)} reads {value.name}, which comes from no product with a weight")
        found[id(node)] = node
    return list(found.values())


def _way_back(value: Any) -> Iterator[Any]:
    """The nodes from the one that makes a value to the product that it comes from, or to where none does."""
    node = value.producer()
    yield node
    while node is not None and node.op_type not in _PRODUCTS:
        node = next((v.producer() for v in node.inputs if v is not None and v.producer() is not None), None)
        if node is not None:
            yield node


def _reads_table(node: Any) -> bool:
    """Whether a node gathers rows of a weight: the embedding, or learned positions."""
    if node.op_type != "Gather":
        return bool(node.op_type == "GatherBlockQuantized")
    value = node.inputs[0]
    while value.producer() is not None:
        if value.producer().op_type not in ("Cast", "Transpose"):
            return False
        value = value.producer().inputs[0]
    return value.const_value is not None and len(value.const_value.shape) > 1


def _activation(down: Any) -> Any:
    """The node that bends what the last product of an FFN reads: a Gelu, or the Sigmoid of a SiLU."""
    todo = [down.inputs[0].producer()]
    while todo:
        node = todo.pop(0)
        if node.op_type in ("Gelu", "Sigmoid"):
            return node
        todo += [v.producer() for v in node.inputs if v is not None and v.producer() is not None]
    raise UserError("a feed-forward block has no activation that this version knows")


def _passes(value: Any, op_type: str) -> bool:
    """Whether a query meets such a node on its way from the product."""
    return any(node is not None and node.op_type == op_type for node in _way_back(value))


def _by_head(norm: Any) -> bool:
    producer = norm.inputs[0].producer()
    return producer is not None and producer.op_type == "Reshape"


def _product(name: str, node: Any) -> Product:
    if node.op_type == "MatMulNBits":
        k, columns = _size_of(node)
        biased = len(node.inputs) > 5 and node.inputs[5] is not None
        return Product(name, k, columns, _blocks(node), biased or _bias(node))
    weight = initializer_of(node.inputs[1])
    k, columns = _size(node.inputs[1])
    return Product(name, k, columns, Format(_dtype(weight)), _bias(node))


def _size_of(node: Any) -> tuple[int, int]:
    """(inputs, outputs) of a product."""
    if node.op_type == "MatMulNBits":
        return int(attribute(node, "K")), int(attribute(node, "N"))
    return _size(node.inputs[1])


def _given(node: Any, i: int) -> bool:
    return len(node.inputs) > i and node.inputs[i] is not None


def _blocks(node: Any) -> Format:
    bits, zeros = int(attribute(node, "bits", 4)), _given(node, 3)
    zero = _dtype(initializer_of(node.inputs[3])) if zeros else "uint8"
    return Format(
        f"int{bits}", int(attribute(node, "block_size", 128)), _dtype(initializer_of(node.inputs[2])), zeros, zero
    )


def _embedding_format(node: Any) -> Format:
    if node.op_type == "GatherBlockQuantized":
        return _blocks(node)
    return Format(_dtype(initializer_of(node.inputs[0])))


def _bias(node: Any) -> bool:
    """Whether the product's only use adds a vector of weights."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0][0].op_type != "Add":
        return False
    return any(v.producer() is None and v.const_value is not None for v in uses[0][0].inputs)


def _dtype(value: Any) -> str:
    name = str(value.const_value.dtype.name).lower()
    return {"float": "float32"}.get(name, name)


def _size(value: Any) -> tuple[int, int]:
    """(rows, columns) of a weight expression."""
    transposed = False
    while value.producer() is not None:
        transposed ^= value.producer().op_type == "Transpose"
        value = value.producer().inputs[0]
    rows, columns = (int(d) for d in value.const_value.shape)
    return (columns, rows) if transposed else (rows, columns)
