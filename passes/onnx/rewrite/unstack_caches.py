"""Caches in one tensor -> a tensor each.

    past [2, B, H, P, D] -> Gather 0, Gather 1        ->  key, value [B, H, P, D]
    present = Concat(Unsqueeze k, Unsqueeze v)        ->  k, v

So GPT-2 was exported for years; some files have the caches of all layers in one tensor, [2 L, ...] or [L, 2, ...].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, add_initializer, attribute, constant, emit, replace_uses

_RANK = 4  # of a cache
_FIRST = (0,)


def unstack_caches(imp: Importing) -> PassLog:
    """Take every stack of caches apart, or leave all that goes in and out as it is."""
    matched = 0
    while stacks := [v for v in imp.graph.inputs if v.shape is not None and len(v.shape) > _RANK]:
        parts = [_parts_of(value) for value in stacks]
        if not all(parts):
            break
        for value, part in zip(stacks, parts, strict=True):
            _take_input_apart(imp, value, part, matched)
            matched += 1
    made = 0
    while matched and (value := next((v for v in imp.graph.outputs if _stacked(v)), None)) is not None:
        _take_output_apart(imp, value, made)
        made += 1
    return PassLog("unstack_caches", matched)


def _parts_of(value: Any) -> dict[int, list[Any]]:
    """The values that are a stack's elements by number, or nothing where something else is read of it."""
    size = value.shape[0]
    found: dict[int, list[Any]] = {}
    if not isinstance(size, int) or not 1 <= size <= 1 << 12:
        return {}
    for node, _ in value.uses():
        if node.op_type == "Shape":
            continue
        if node.op_type == "Gather" and attribute(node, "axis", 0) == 0:
            which = constant(node.inputs[1], 1)
            if which is None or which.ndim or not -size <= int(which) < size:
                return {}
            found.setdefault(int(which) % size, []).append(node.outputs[0])
        elif node.op_type == "Split" and attribute(node, "axis", 0) == 0 and len(node.outputs) == size:
            for i, output in enumerate(node.outputs):
                squeezed = [reader for reader, _ in output.uses()]
                if any(reader.op_type != "Squeeze" or _axes(reader) != _FIRST for reader in squeezed):
                    return {}
                found.setdefault(i, []).extend(reader.outputs[0] for reader in squeezed)
        else:
            return {}
    return found if len(found) == size else {}


def _axes(node: Any) -> tuple[int, ...] | None:
    numbers = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if numbers is None else tuple(int(n) for n in numbers.reshape(-1))


def _take_input_apart(imp: Importing, value: Any, parts: dict[int, list[Any]], number: int) -> None:
    fresh = []
    for i in range(len(parts)):
        new = ir.Value(name=f"stacked.{number}.{i}", shape=ir.Shape(list(value.shape)[1:]), type=value.type)
        imp.graph.inputs.append(new)
        fresh.append(new)
        for part in parts[i]:
            replace_uses(part, new)
    for node, _ in list(value.uses()):
        if node.op_type == "Shape":
            count = add_initializer(imp.graph, f"{value.name}.count", np.array([len(parts)], np.int64))
            shape = emit(node, "Shape", [fresh[0]]).outputs[0]
            whole = emit(node, "Concat", [count, shape], {"axis": 0}).outputs[0]
            first, end = attribute(node, "start", 0), attribute(node, "end", len(value.shape))
            places = np.arange(len(value.shape), dtype=np.int64)[first:end]
            chosen = add_initializer(imp.graph, f"{value.name}.places", places)
            replace_uses(node.outputs[0], emit(node, "Gather", [whole, chosen], {"axis": 0}).outputs[0])
    for node in {node for node, _ in value.uses()}:
        for i, read in enumerate(node.inputs):
            if read is value:
                node.replace_input_with(i, None)
        imp.graph.remove(_without_readers(node), safe=False)
    imp.graph.inputs.remove(value)


def _without_readers(node: Any) -> list[Any]:
    """A node and those that read it, none of which anything reads."""
    readers = {reader for output in node.outputs for reader, _ in output.uses()}
    return [*readers, node]


def _stacked(value: Any) -> bool:
    node = value.producer()
    return (
        node is not None
        and node.op_type == "Concat"
        and attribute(node, "axis") in (0, -len(value.shape or ()) or None)
        and all(v.producer() is not None and v.producer().op_type == "Unsqueeze" for v in node.inputs)
        and all(_axes(v.producer()) == _FIRST for v in node.inputs)
    )


def _take_output_apart(imp: Importing, value: Any, number: int) -> None:
    at = list(imp.graph.outputs).index(value)
    node = value.producer()
    fresh = []
    for i, stacked in enumerate(node.inputs):
        part = stacked.producer().inputs[0]
        if part.producer() is None or part.is_graph_output():
            part = emit(node, "Identity", [part]).outputs[0]
        part.name = f"unstacked.{number}.{i}"
        part.type = value.type if part.type is None else part.type
        fresh.append(part)
    imp.graph.outputs[at : at + 1] = fresh
