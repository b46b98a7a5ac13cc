"""Finds the cache's head dimension where the exporter left it symbolic (onnxruntime-genai writes "kv_cache_dim").

The keys appended to a cache have it, as does the query of a GroupQueryAttention node; both are reached by shape
inference that does not look at the cache. A cache in float16 may be cast before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from passes.onnx.pass_context import Importing, PassLog, attribute
from passes.onnx.shapes import known_shapes, points
from targets.errors import UserError


def find_head_dim(imp: Importing) -> PassLog:
    """Fix the last dimension of all caches.

    Raises:
        UserError: no node that appends to the first cache tells it.
    """
    if imp.facts.head_dim or imp.facts.no_cache:
        return PassLog("find_head_dim", 0)
    imp.facts.head_dim = 1
    known = known_shapes(imp, points(imp)[0])
    found = [_head_dim(node, index, known) for node, index in _uses(imp.input("past_key_values.0.key"))]
    dims = {d for d in found if d}
    if len(dims) != 1:
        raise UserError("the head dimension of past_key_values.0.key is symbolic and no node tells it; export it fixed")
    imp.facts.head_dim = dims.pop()
    for value in (*imp.graph.inputs, *imp.graph.outputs):
        if value.name.startswith(("past_key_values.", "present.")):
            value.shape[3] = imp.facts.head_dim
    return PassLog("find_head_dim", 2 * imp.facts.layers)


def _uses(value: Any) -> Iterator[tuple[Any, int]]:
    """(node, which of its inputs) of all that read a value, behind casts of it, too."""
    for node, index in value.uses():
        if node.op_type == "Cast":
            yield from _uses(node.outputs[0])
        else:
            yield node, index


def _head_dim(node: Any, index: int, known: dict[Any, Any]) -> int | None:
    if node.op_type == "Concat" and index == 0 and node.inputs[1] in known and known[node.inputs[1]].shape:
        return known[node.inputs[1]].shape[-1]
    if node.op_type == "GroupQueryAttention" and node.inputs[0] in known and known[node.inputs[0]].shape:
        heads = attribute(node, "num_heads") + (2 * attribute(node, "kv_num_heads") if node.inputs[1] is None else 0)
        return known[node.inputs[0]].shape[-1] // heads
    return None
