"""Slices that cut a packed projection apart -> one Split of rows.

    q = Slice(qkv, 0, 128, axis -1); k = Slice(qkv, 128, 192, -1); v = Slice(qkv, 192, 256, -1)
    ->  q, k, v = Split(qkv, [128, 64, 64], axis -1)

    q, k, v = Split(Unsqueeze(qkv, 1), [128, 64, 64], axis 3)      of [B, 1, S, width], as GPTBigCode (StarCoder) has it
    ->  q, k, v = Unsqueeze(Split(qkv, [128, 64, 64], axis -1), 1)

Phi3 and its kin pack q, k, v and gate, up this way. Only slices that together cover the last axis once are rewritten;
the halves that a rotation slices off are left to the rotation's proof, because they are slices of one head.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, add_initializer, attribute, constant, emit, replace_uses
from passes.onnx.shapes import Known, known_shapes, points


def split_packed(imp: Importing) -> PassLog:
    """Rewrite slices of values [B, S, width], and give every Split there its sizes as a constant."""
    known, other = (known_shapes(imp, p) for p in points(imp))
    sliced: dict[Any, list[tuple[int, int, Any]]] = {}
    matched = 0
    for node in list(imp.graph):
        if node.domain or node.op_type not in ("Slice", "Split"):
            continue
        if node.op_type == "Split":
            matched += _under_unsqueeze(node, known)
        x = node.inputs[0]
        if x not in known or len(known[x].shape) != 3:
            continue
        if node.op_type == "Split":
            matched += _sizes_given(imp, node, known)
        elif (cut := _range(node, known, other)) is not None:
            sliced.setdefault(x, []).append((*cut, node))
    for x, cuts in sliced.items():
        matched += _split(imp, x, sorted(cuts, key=lambda c: c[:2]), known[x].shape[-1])
    return PassLog("split_packed", matched)


def _under_unsqueeze(node: Any, known: dict[Any, Known]) -> bool:
    """A Split of rows with an axis of one put before them -> the Split first, then that axis."""
    outer = node.inputs[0].producer()
    if outer is None or outer.op_type != "Unsqueeze" or attribute(node, "axis", 0) not in (-1, 3):
        return False
    x, axes = outer.inputs[0], constant(outer.inputs[1])
    if x not in known or len(known[x].shape) != 3 or axes is None or axes.reshape(-1).tolist() not in ([1], [-3]):
        return False
    if any(part.is_graph_output() for part in node.outputs):
        return False
    following = list(node.graph)[list(node.graph).index(node) + 1]
    for part in node.outputs:
        users = tuple(part.uses())
        moved = emit(following, "Unsqueeze", [part, outer.inputs[1]], outputs=[f"{part.name}.unsqueezed"]).outputs[0]
        moved.type, moved.shape, part.shape = part.type, part.shape, None
        for user, place in users:
            user.replace_input_with(place, moved)
        if part in known:
            known[part] = Known(known[part].dtype, (*known[x].shape[:2], known[part].shape[-1]))
    node.replace_input_with(0, x)
    node.attributes["axis"] = ir.AttrInt64("axis", -1)
    return True


def _range(node: Any, known: dict[Any, Known], other: dict[Any, Known]) -> tuple[int, int] | None:
    """[start, end) of a slice of the last axis in steps of one; bounds may be computed, but not from free sizes."""
    width = known[node.inputs[0]].shape[-1]
    numbers = [_number(v, known, other) for v in node.inputs[1:]]
    if len(numbers) < 3 or any(x is None or x.size != 1 for x in numbers):
        return None
    start, end, axis, *step = (int(x.reshape(-1)[0]) for x in numbers if x is not None)
    if axis not in (-1, 2) or step not in ([], [1]):
        return None
    return slice(start, end).indices(width)[:2]


def _number(value: Any, known: dict[Any, Known], other: dict[Any, Known]) -> np.ndarray | None:
    if value is None or value not in known or value not in other:
        return constant(value)
    a, b = known[value].data, other[value].data
    return a if a is not None and b is not None and np.array_equal(a, b) else None


def _split(imp: Importing, x: Any, cuts: list[tuple[int, int, Any]], width: int) -> bool:
    borders = [start for start, _, _ in cuts] + [width]
    if borders[0] != 0 or [end for _, end, _ in cuts] != borders[1:]:
        return False
    first = min((node for _, _, node in cuts), key=list(imp.graph).index)
    sizes = add_initializer(imp.graph, f"{x.name}.sizes", np.diff(np.array(borders, np.int64)))
    names = [f"{node.outputs[0].name}.part" for _, _, node in cuts]
    split = emit(first, "Split", [x, sizes], {"axis": -1}, num_outputs=len(cuts), name=f"{x.name}.split", outputs=names)
    for (_, _, node), part in zip(cuts, split.outputs, strict=True):
        part.type, part.shape = node.outputs[0].type, node.outputs[0].shape
        replace_uses(node.outputs[0], part)
    return True


def _sizes_given(imp: Importing, node: Any, known: dict[Any, Known]) -> bool:
    """Split into equal parts -> the sizes written out."""
    if attribute(node, "axis", 0) not in (-1, 2) or (len(node.inputs) > 1 and node.inputs[1] is not None):
        return False
    if any(v not in known for v in node.outputs):
        return False
    sizes = np.array([known[v].shape[-1] for v in node.outputs], np.int64)
    node.resize_inputs(2)
    node.replace_input_with(1, add_initializer(imp.graph, f"{node.outputs[0].name}.sizes", sizes))
    node.attributes.pop("num_outputs", None)
    return True
