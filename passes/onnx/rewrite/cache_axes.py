"""Caches with their axes in another order -> batch, heads, length, width.

    past [B, P, H, D] -> Concat(past, k) axis 1 -> Transpose 0 2 1 3 -> attention
    past [B, H, P, D] -> Concat(past, Transpose(k)) axis 2 -> attention

The Concat or the attention that appends to a cache says which axis is the length; of the sizes that are fixed the heads
come before the width. Transposes that undo each other go; where something else reads a cache, one stays before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, add_initializer, attribute, emit, replace_uses
from passes.onnx.prove.cache_roles import ATTENTIONS
from passes.onnx.rewrite.normalise_io_names import known_input, known_output

_IN_ORDER = [0, 1, 2, 3]


def cache_axes(imp: Importing) -> PassLog:
    """Turn every cache, or none."""
    inputs = {name: v for v in imp.graph.inputs if (name := known_input(v) or "").startswith("past")}
    outputs = {name: v.name for v in imp.graph.outputs if (name := known_output(v) or "").startswith("present")}
    if not inputs or any(v.shape is None or len(v.shape) != 4 for v in inputs.values()):
        return PassLog("cache_axes", 0)
    batch = next((v.shape[0] for v in imp.graph.inputs if known_input(v) == "input_ids" and v.shape is not None), None)
    orders = {name: _order(value, batch) for name, value in inputs.items()}
    if None in orders.values() or all(order == _IN_ORDER for order in orders.values()):
        return PassLog("cache_axes", 0)
    for name, order in orders.items():
        if order is not None and order != _IN_ORDER:
            present = outputs.get(name.replace("past_key_values", "present"))
            _turn_input(imp, inputs[name], order)
            if present is not None:
                _turn_output(imp, next(v for v in imp.graph.outputs if v.name == present), order)
    return PassLog("cache_axes", sum(order != _IN_ORDER for order in orders.values()))


def _order(value: Any, batch: Any) -> list[int] | None:
    """The axes of batch, heads, length and width; None where that is not clear."""
    length = _appended(value, _IN_ORDER)
    if length is None or isinstance(value.shape[length], int):
        return None
    rest = [axis for axis in _IN_ORDER if axis != length]
    free = [axis for axis in rest if not isinstance(value.shape[axis], int)]
    same = [axis for axis in rest if str(value.shape[axis]) == str(batch)]
    first = (same or free or rest)[0]
    rest.remove(first)
    return [first, rest[0], length, rest[1]]


def _appended(value: Any, axes: list[int]) -> int | None:
    """The axis along which something is appended to a cache; `axes` are those of the value, as the cache's."""
    for node, i in value.uses():
        if node.op_type == "Concat" and i == 0:
            axis = attribute(node, "axis")
            return axes[axis] if -4 <= axis < 4 else None
        if node.op_type in ATTENTIONS and i in ATTENTIONS[node.op_type][1]:
            return axes[2]
        if node.op_type == "Transpose" and sorted(perm := attribute(node, "perm", (3, 2, 1, 0))) == _IN_ORDER:
            found = _appended(node.outputs[0], [axes[axis] for axis in perm])
            if found is not None:
                return found
    return None


def _turn_input(imp: Importing, old: Any, order: list[int]) -> None:
    shape = ir.Shape([old.shape[axis] for axis in order])
    new = ir.Value(name=old.name, shape=shape, type=old.type)
    old.name = f"{old.name}.as_it_was"
    imp.graph.inputs[list(imp.graph.inputs).index(old)] = new
    _turn_readers(imp, old, new, order)


def _turn_readers(imp: Importing, old: Any, new: Any, order: list[int]) -> None:
    """Let everything that reads `old` read `new`, which has its axes in that order."""
    back = [order.index(axis) for axis in _IN_ORDER]
    for node in dict.fromkeys(node for node, _ in old.uses()):
        if node.op_type == "Transpose":
            perm = [back[axis] for axis in attribute(node, "perm", (3, 2, 1, 0))]
            turned = new if perm == _IN_ORDER else emit(node, "Transpose", [new], {"perm": perm}).outputs[0]
            replace_uses(node.outputs[0], turned)
        elif node.op_type == "Shape":
            shape = emit(node, "Shape", [new]).outputs[0]
            places = np.array(back, np.int64)[attribute(node, "start", 0) : attribute(node, "end", 4)]
            chosen = add_initializer(imp.graph, f"{new.name}.axes", places)
            replace_uses(node.outputs[0], emit(node, "Gather", [shape, chosen], {"axis": 0}).outputs[0])
        elif node.op_type == "Concat" and node.inputs[0] is old:
            parts = [new, *(_turned(node, v, order) for v in node.inputs[1:])]
            whole = emit(node, "Concat", parts, {"axis": order.index(attribute(node, "axis") % 4)}).outputs[0]
            out = node.outputs[0]
            whole.type = old.type
            if out.is_graph_output():
                kept = emit(node, "Transpose", [whole], {"perm": back}).outputs[0]
                kept.name, out.name = out.name, f"{out.name}.as_it_was"
                kept.type, kept.shape = out.type, out.shape
                imp.graph.outputs[list(imp.graph.outputs).index(out)] = kept
            _turn_readers(imp, out, whole, order)
        else:
            kept = emit(node, "Transpose", [new], {"perm": back}).outputs[0]
            for i, read in enumerate(node.inputs):
                if read is old:
                    node.replace_input_with(i, kept)


def _turned(before: Any, value: Any, order: list[int]) -> Any:
    """A value with its axes in an order; a Transpose that made it goes where nothing is left of it."""
    node = value.producer()
    if node is not None and node.op_type == "Transpose":
        perm = [attribute(node, "perm", (3, 2, 1, 0))[axis] for axis in order]
        if perm == _IN_ORDER:
            return node.inputs[0]
        return emit(before, "Transpose", [node.inputs[0]], {"perm": perm}).outputs[0]
    return emit(before, "Transpose", [value], {"perm": order}).outputs[0]


def _turn_output(imp: Importing, old: Any, order: list[int]) -> None:
    at, node = list(imp.graph.outputs).index(old), old.producer()
    new = _turned(node, old, order) if node.op_type == "Transpose" else _after(node, old, order)
    if new.producer() is None or new.is_graph_output():
        new = emit(node, "Identity", [new]).outputs[0]
    new.type = old.type if new.type is None else new.type
    old.name, new.name = f"{old.name}.as_it_was", old.name
    new.shape = None if old.shape is None else ir.Shape([old.shape[axis] for axis in order])
    imp.graph.outputs[at] = new


def _after(node: Any, value: Any, order: list[int]) -> Any:
    turned = ir.node("Transpose", [value], {"perm": order})
    node.graph.insert_after(node, turned)
    return turned.outputs[0]
