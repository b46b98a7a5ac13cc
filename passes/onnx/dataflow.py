"""Walks between a computed value and where it came from, through nodes that use no weight."""

from __future__ import annotations

from typing import Any

from passes.onnx.pass_context import Importing, constant
from passes.onnx.shapes import Known

_WEIGHT_FREE = {
    *("Add", "Sub", "Mul", "Div", "Neg", "Slice", "Concat", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Split"),
    *("Cast", "Identity", "Expand", "Gather", "Tile", "Flatten", "RotaryEmbedding", "Where"),
}


def activations(imp: Importing) -> set[Any]:
    """Values computed from the embedding of the tokens (masks, positions and shapes are not among them)."""
    found: set[Any] = set()
    ids = imp.input("input_ids")
    for node in imp.graph:
        if node.op_type == "Shape":
            continue
        embeds = node.op_type in ("Gather", "GatherBlockQuantized") and node.inputs[1] is ids
        if embeds or any(v in found for v in node.inputs):
            found.update(node.outputs)
    return found


def weight_free(node: Any) -> bool:
    """Whether a node only moves, rotates or scales: no operand is a constant of more than one element."""
    if node is None or node.op_type not in _WEIGHT_FREE:
        return False
    if node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return True
    return not any(v is not None and v.const_value is not None and v.const_value.size > 1 for v in node.inputs)


def source_of(value: Any, active: set[Any], known: dict[Any, Known]) -> Any:
    """The farthest value with as many elements that all of `value` passes through on its weight-free way.

    For the rotated, transposed queries this is the result of the projection, or the norm after it.
    """
    order = {node: i for i, node in enumerate(value.graph)}
    frontier, best = {value}, value
    while frontier:
        if len(frontier) == 1:
            (only,) = frontier
            if only in known and known[only].size == known[value].size and len(known[only].shape) >= 3:
                best = only
        latest = max(frontier, key=lambda v: order.get(v.producer(), -1))
        node = latest.producer()
        if not weight_free(node):
            return best
        frontier -= set(node.outputs)
        frontier |= {v for v in node.inputs if v in active}
    return best


def targets_of(value: Any, limit: int = 12) -> list[Any]:
    """Values that `value` becomes through weight-free nodes that alone use it, nearest first, itself included."""
    found = [value]
    while len(found) < limit:
        users = {node for node, _ in found[-1].uses()}
        if len(users) != 1:
            break
        (node,) = users
        operands = [v for v in node.inputs if v is not None and v is not found[-1] and constant(v) is None]
        if not weight_free(node) or any(v.producer() is None or _from_data(v) for v in operands):
            break
        found.append(node.outputs[0])
    return found


def _from_data(value: Any) -> bool:
    """Whether an operand is more than shape arithmetic."""
    todo, seen = [value], set()
    while todo:
        v = todo.pop()
        if v in seen or v is None:
            continue
        seen.add(v)
        node = v.producer()
        if node is None:
            if v.is_graph_input():
                return True
            continue
        if node.op_type != "Shape":
            todo.extend(node.inputs)
    return False
