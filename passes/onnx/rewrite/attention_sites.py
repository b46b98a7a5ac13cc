"""Finds where the export attends, whatever the operator: around a Softmax, MultiHeadAttention, opset-23 Attention.

A site is only a claim: which values are query, keys and values, and where scores turn into masked scores.
`fuse_attention` proves each claim by running the pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from passes.onnx.pass_context import Declined, Importing, attribute

_BEFORE_SOFTMAX = {
    *("Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Reshape", "Max", "Min", "Clip", "Expand", "Tanh"),
}
_AFTER_SOFTMAX = {"Where", "IsNaN", "Cast", "Identity", "Reshape", "Expand", "Dropout", "Mul"}


@dataclass(frozen=True)
class Site:
    """One attention as the exporter wrote it.

    Attributes:
        node: the node it is recognised by.
        query, key, value: its operands, keys and values with the cache and repeated for the query heads or not.
        scores: query times key, or None if the operator hides it.
        masked: what the softmax gets (where `scores` is known), or the mask operand, or None: no mask at all.
        causal: the operator itself hides the future.
        weights: the softmax result and what multiplies the values, or None.
        output: weights times values.
        scale: the operator's own factor on the scores.
        past: cache operands of the operator itself (key, value), or None: the export concatenates.
        present: the operator's own cache outputs, or None.
        softcap: the operator's own cap c, scores becoming c * tanh(scores / c); 0: none, or left to be found.
    """

    node: Any
    query: Any
    key: Any
    value: Any
    scores: Any
    masked: Any
    causal: bool
    weights: tuple[Any, Any] | None
    output: Any
    scale: float
    past: tuple[Any, Any] | None = None
    present: tuple[Any, Any] | None = None
    softcap: float = 0.0


def attention_sites(imp: Importing) -> Iterator[tuple[Any, Site | str]]:
    """Every place that attends: (node, site), or (node, the sentence why none can be made of it)."""
    for node in list(imp.graph):
        make = _SITES.get((node.domain, node.op_type))
        if make is None:
            continue
        try:
            yield node, make(imp, node)
        except Declined as reason:
            yield node, str(reason)


def _softmax(imp: Importing, node: Any) -> Site:
    if attribute(node, "axis", -1) != -1:
        raise Declined(f"its axis is {attribute(node, 'axis')}, not the last one")
    scores = _back_to_matmul(node.inputs[0])
    matmul = _forward_to_matmul(node.outputs[0])
    if matmul.inputs[0].producer() is None:
        raise Declined("the softmax result is not the left operand of a matrix multiplication")
    return Site(
        node=node,
        query=scores.producer().inputs[0],
        key=scores.producer().inputs[1],
        value=matmul.inputs[1],
        scores=scores,
        masked=node.inputs[0],
        causal=False,
        weights=(node.outputs[0], matmul.inputs[0]),
        output=matmul.outputs[0],
        scale=1.0,
    )


def _back_to_matmul(value: Any) -> Any:
    todo, seen = [value], set()
    while todo:
        current = todo.pop(0)
        node = current.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "MatMul":
            return current
        if node.op_type in _BEFORE_SOFTMAX:
            todo.extend(v for v in node.inputs if v is not None)
    raise Declined("no matrix multiplication of query and key is found before the softmax")


def _forward_to_matmul(value: Any) -> Any:
    todo, seen = [value], set()
    while todo:
        for node, _ in todo.pop(0).uses():
            if node.op_type == "MatMul":
                return node
            if node.op_type in _AFTER_SOFTMAX and node not in seen:
                seen.add(node)
                todo.extend(node.outputs)
    raise Declined("no matrix multiplication with the values is found after the softmax")


def _operand(node: Any, index: int) -> Any:
    return node.inputs[index] if index < len(node.inputs) else None


def _multi_head(imp: Importing, node: Any) -> Site:
    if any(_operand(node, i) is not None for i in (3, 4)) or len(node.inputs) > 8:
        raise Declined("MultiHeadAttention with a bias, a key padding mask or a cache of its own layout")
    causal = bool(attribute(node, "unidirectional", 0))
    return _operator(imp, node, mask=5, causal=causal, past=6)


def _attention(imp: Importing, node: Any) -> Site:
    if attribute(node, "qk_matmul_output_mode", 0):
        raise Declined("the scores of Attention are an output")
    if len(node.outputs) > 3 and node.outputs[3].uses():
        raise Declined("the scores of Attention are used as an output")
    if _operand(node, 6) is not None:
        raise Declined("Attention with nonpad_kv_seqlen is not supported")
    return _operator(imp, node, mask=3, causal=bool(attribute(node, "is_causal", 0)), past=4)


def _operator(imp: Importing, node: Any, mask: int, causal: bool, past: int) -> Site:
    """The site of an operator whose inputs `mask` and `past`, `past` + 1 are the mask and the cache."""
    if any(_operand(node, i) is None for i in range(3)):
        raise Declined("query, key and value are not three inputs")
    caches = (_operand(node, past), _operand(node, past + 1))
    return Site(
        node=node,
        query=node.inputs[0],
        key=node.inputs[1],
        value=node.inputs[2],
        scores=None,
        masked=_operand(node, mask),
        causal=causal,
        weights=None,
        output=node.outputs[0],
        scale=attribute(node, "scale", 0.0) or 1.0 / imp.facts.head_dim**0.5,
        softcap=attribute(node, "softcap", 0.0) if node.op_type == "Attention" else 0.0,
        past=caches if caches[0] is not None else None,
        present=tuple(node.outputs[1:3]) if len(node.outputs) > 2 else None,
    )


_SITES = {
    ("", "Softmax"): _softmax,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("", "Attention"): _attention,
}
