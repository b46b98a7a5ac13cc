"""Shape(any value) -> the same numbers from the graph inputs, so that shape arithmetic no longer reads activations.

    Shape(hidden)[0:2]   ->   Concat(Shape(input_ids)[0:1], Shape(input_ids)[1:2])

Every value's shape is computed at two points; a dimension is constant, one of batch, new, past, past + new, or so many
times the batch (BLOOM's heads of all texts).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.onnx.pass_context import Importing, PassLog, add_initializer, attribute, emit
from passes.onnx.rewrite.sort_nodes import sort_nodes
from passes.onnx.shapes import Point, known_shapes, points
from targets.errors import UserError


def resolve_shapes(imp: Importing) -> PassLog:
    """Rewrite every Shape node whose operand is no graph input.

    Raises:
        UserError: the logits have another rank than 3.
    """
    at = points(imp)
    known = [known_shapes(imp, p) for p in at]
    _check_logits(imp, known[0])
    dimensions: dict[Any, Any] = {}
    matched, notes = 0, []
    for node in list(imp.graph):
        if node.domain or node.op_type != "Shape" or node.inputs[0].is_graph_input() or _is_output(node):
            continue
        shapes = [k[node.inputs[0]].shape if node.inputs[0] in k else None for k in known]
        ranks = {None if s is None else len(s) for s in shapes}
        names = None if None in ranks or len(ranks) > 1 else [_name(d, at) for d in zip(*shapes, strict=True)]
        if names is None or None in names:
            notes.append(f"the shape of {node.inputs[0].name} is no function of batch, new and past tokens")
            continue
        names = names[attribute(node, "start", 0) : attribute(node, "end", len(names))]
        parts = [_dimension(imp, dimensions, name) for name in names]
        if not parts:
            continue
        joined = parts[0] if len(parts) == 1 else emit(node, "Concat", parts, {"axis": 0}).outputs[0]
        joined.name = joined.name or f"{node.outputs[0].name}.resolved"
        node.outputs[0].replace_all_uses_with(joined)
        imp.graph.remove(node, safe=True)
        matched += 1
    sort_nodes(imp.graph)
    return PassLog("resolve_shapes", matched, tuple(notes))


def _check_logits(imp: Importing, known: dict[Any, Any]) -> None:
    logits = imp.graph.outputs[0]
    if logits.name == "logits" and logits in known and len(known[logits].shape) != 3:
        raise UserError(f"the logits have the shape {known[logits].shape}, not [batch, tokens, vocabulary]")


def _is_output(node: Any) -> bool:
    return bool(node.outputs[0].is_graph_output())


def _name(dims: tuple[int, int], at: tuple[Point, Point]) -> Any:
    """What a pair of dimensions is: an int, "batch", "new", "past", "total", ("batch", times), or None."""
    if dims[0] == dims[1]:
        return dims[0]
    formulas = {
        "batch": lambda p: p.batch,
        "new": lambda p: p.new,
        "past": lambda p: p.past,
        "total": lambda p: p.past + p.new,
    }
    times = dims[0] // at[0].batch
    several = ("batch", times) if dims == (times * at[0].batch, times * at[1].batch) else None
    return next((name for name, f in formulas.items() if dims == (f(at[0]), f(at[1]))), several)


def _dimension(imp: Importing, made: dict[Any, Any], name: Any) -> Any:
    """A one-element int64 value with that dimension, made once at the head of the graph."""
    if name in made:
        return made[name]
    if isinstance(name, int):
        made[name] = add_initializer(imp.graph, f"dimension.{name}", np.array([name], np.int64))
        return made[name]
    first = imp.graph[0]  # the order is put right by sorting at the end of the pass
    if isinstance(name, tuple):
        parts = [_dimension(imp, made, part) for part in name]
        node = emit(first, "Mul", parts, outputs=[f"dimension.{name[0]}.{name[1]}"])
    elif name == "total":
        parts = [_dimension(imp, made, "past"), _dimension(imp, made, "new")]
        node = emit(first, "Add", parts, outputs=["dimension.total"])
    else:
        source, axis = ("past_key_values.0.key", 2) if name == "past" else ("input_ids", ("batch", "new").index(name))
        attributes = {"start": axis, "end": axis + 1}
        node = emit(first, "Shape", [imp.input(source)], attributes, outputs=[f"dimension.{name}"])
    made[name] = node.outputs[0]
    return made[name]
