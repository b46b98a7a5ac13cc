"""Computes what depends on small constants only, and removes nodes that do nothing. Weights are never touched.

    Sqrt(0.125) -> 0.353..        Cast(x: f32, to=f32) -> x        Identity(x), Concat(x), Slice(x, from 0) -> x

After the upcast many casts do nothing; without them the norms and masks of float16 exports look like float32 ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.onnx.pass_context import (
    Importing,
    PassLog,
    add_initializer,
    attribute,
    constant,
    replace_uses,
    scalar,
)
from passes.onnx.shapes import Known, known_shapes, points, run_node, small_result

_MOST_ELEMENTS = 1024
_NO_END = (1 << 31) - 1  # what exporters write for it, at least
_LONGEST_VECTOR = 1 << 16  # norm weights: Gemma's norms multiply by 1 + weight


def fold_constants(imp: Importing) -> PassLog:
    """Fold, then take out what does nothing."""
    folded = 0
    for node in list(imp.graph):
        folded += _fold(imp, node)
    removed = _remove_idle(imp, known_shapes(imp, points(imp)[0]) if _sizes_known(imp) else {})
    return PassLog("fold_constants", folded + removed)


def _sizes_known(imp: Importing) -> bool:
    return bool(imp.facts.head_dim or imp.facts.no_cache)


def _foldable(value: Any) -> np.ndarray | None:
    """The numbers of a small constant or of a vector."""
    numbers = constant(value, _LONGEST_VECTOR)
    return numbers if numbers is not None and (numbers.size <= _MOST_ELEMENTS or numbers.ndim == 1) else None


def _fold(imp: Importing, node: Any) -> bool:
    inputs = [None if v is None else _foldable(v) for v in node.inputs]
    if node.domain or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return False
    if any(x is None and v is not None for x, v in zip(inputs, node.inputs, strict=True)):
        return False
    if node.op_type.startswith("Random") or not node.inputs:
        return False
    if node.op_type == "DequantizeLinear" and inputs[0] is not None and inputs[0].ndim > 1:
        return False  # a weight, however small, stays as it is stored
    if not small_result(node, inputs):
        return False
    try:
        (result,) = run_node(node, inputs, imp.graph.opset_imports[""])
    except Exception:  # the reference evaluator lacks this operator: the node stays
        return False
    result = np.asarray(result)
    if result.size > (_LONGEST_VECTOR if result.ndim == 1 else _MOST_ELEMENTS):
        return False
    value = add_initializer(imp.graph, f"{node.outputs[0].name}.folded", np.asarray(result))
    node.outputs[0].replace_all_uses_with(value)
    return True


def _remove_idle(imp: Importing, known: dict[Any, Known]) -> int:
    removed = 0
    for node in list(imp.graph):
        alone = node.op_type == "Concat" and len(node.inputs) == 1
        if node.domain or not (node.op_type in ("Identity", "Cast", "Dropout") or alone or _slices_all(node)):
            continue
        source, target = node.inputs[0], node.outputs[0]
        if target.is_graph_output() and (source.producer() is None or source.is_graph_output()):
            continue
        if node.op_type == "Cast":
            dtype = known[source].dtype if source in known else source.dtype
            if dtype is None or int(dtype) != attribute(node, "to"):
                continue
        if node.op_type == "Dropout" and not _idle_dropout(node):
            continue
        replace_uses(target, source)
        removed += 1
    return removed


def _slices_all(node: Any) -> bool:
    """Whether it is a Slice from the first element to the last of any number."""
    if node.op_type != "Slice" or len(node.inputs) < 3:
        return False
    starts, ends = (constant(v) for v in node.inputs[1:3])
    steps = constant(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else np.ones(1)
    if starts is None or ends is None or steps is None:
        return False
    return bool((starts == 0).all() and (ends >= _NO_END).all() and (steps == 1).all())


def _idle_dropout(node: Any) -> bool:
    """Whether it drops nothing: its training mode is off, and its mask is not used."""
    training = node.inputs[2] if len(node.inputs) > 2 else None
    mask_used = any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    return not mask_used and (training is None or scalar(training) == 0.0)
