"""Which cache is the keys' and which the values', of which layer: by what reads them, not by their names.

Keys come to a softmax through one matrix multiplication, values come to none before the next. A cache's output is the
one that is made of its input by moving and appending.
"""

from __future__ import annotations

from typing import Any

from passes.onnx.pass_context import Importing

_MOVES = ("Concat", "Transpose", "Reshape", "Cast", "Identity", "Unsqueeze", "Squeeze", "Expand")
_SCALES = ("Mul", "Div")
_PRODUCTS = ("MatMul", "FusedMatMul", "Einsum")
_MOST_STEPS = 64
# attentions in one node: which input has keys and values, and which the cache of them
ATTENTIONS = {
    "Attention": ({1: "key", 2: "value"}, {4: "key", 5: "value"}),
    "MultiHeadAttention": ({1: "key", 2: "value"}, {6: "key", 7: "value"}),
    "GroupQueryAttention": ({}, {3: "key", 4: "value"}),
}
_PRESENT = {"key": 1, "value": 2}  # their outputs

Role = tuple[int, str]  # layer, and "key" or "value"


def cache_roles(imp: Importing, inputs: list[Any]) -> dict[Role, tuple[Any, Any]]:
    """Input and output of each cache, by layer and kind; empty where some have no clear role."""
    order = {node: i for i, node in enumerate(imp.graph)}
    found: dict[str, list[tuple[int, Any, Any]]] = {"key": [], "value": []}
    for value in inputs:
        reader = _reader_of(value, order)
        present = [output for output in imp.graph.outputs if _made_of(output, value)]
        if reader is None or len(present) != 1:
            return {}
        node, place = reader
        own, past = ATTENTIONS.get(node.op_type, ({}, {}))
        kind = (own | past).get(place) or ("key" if _comes_to_softmax(node) else "value")
        found[kind].append((order[node], value, present[0]))
    roles = {
        (layer, kind): (past, present)
        for kind, caches in found.items()
        for layer, (_, past, present) in enumerate(sorted(caches, key=lambda cache: cache[0]))
    }
    distinct = len({present for _, present in roles.values()}) == len(inputs)
    return roles if distinct and len(found["key"]) == len(found["value"]) else {}


def _reader_of(value: Any, order: dict[Any, int]) -> tuple[Any, int] | None:
    """The first matrix multiplication or attention that a cache comes to, and as which input."""
    frontier, found = [value], []
    for _ in range(_MOST_STEPS):
        readers = [use for v in frontier for use in v.uses()]
        found += [(node, i) for node, i in readers if node.op_type in _PRODUCTS or node.op_type in ATTENTIONS]
        frontier = [out for node, _ in readers if node.op_type in _MOVES + _SCALES for out in node.outputs]
        if not frontier:
            break
    return min(found, key=lambda use: order[use[0]]) if found else None


def _comes_to_softmax(product: Any) -> bool:
    """Whether scores are made of a product: a softmax comes before the next matrix multiplication."""
    frontier = list(product.outputs)
    for _ in range(_MOST_STEPS):
        readers = {node for v in frontier for node, _ in v.uses() if node.op_type not in _PRODUCTS}
        if any(node.op_type == "Softmax" for node in readers):
            return True
        frontier = [out for node in readers for out in node.outputs]
    return False


def _made_of(output: Any, value: Any) -> bool:
    """Whether an output is made of an input by moving and appending."""
    todo, seen = [output], set()
    while todo:
        v = todo.pop()
        if v is value:
            return True
        node = v.producer()
        if v in seen or node is None:
            continue
        seen.add(v)
        if node.op_type in _MOVES:
            todo += [x for x in node.inputs if x is not None]
        elif node.op_type in ATTENTIONS:
            _, past = ATTENTIONS[node.op_type]
            todo += [node.inputs[i] for i, kind in past.items() if i < len(node.inputs) and v is _present(node, kind)]
    return False


def _present(node: Any, kind: str) -> Any:
    at = _PRESENT[kind]
    return node.outputs[at] if at < len(node.outputs) else None
