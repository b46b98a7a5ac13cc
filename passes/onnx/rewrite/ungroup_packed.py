"""A projection whose columns are query, key and value of heads in any order -> those of all heads in turn.

    y = x W + b                                            y = x W' + b'
    by head = Transpose(Reshape(y, [B, S, H, 3 D]))   ->   q, k, v = Split(y, [H D, H D, H D])
    q, k, v = Split(by head, axis 3)                       q = Transpose(Reshape(q, [0, 0, H, D])) and so on

GPT-NeoX has query, key and value of each head side by side; Falcon the query heads that share a key and a value, then
those, and spreads them to as many heads as it caches. Which column an element comes from is found by running the
nodes between on the columns' numbers. W' and b' have the same columns in another order, a spread one several times, so
every number stays; a matrix in blocks has its blocks along columns, so they move as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Declined, Importing, PassLog, add_initializer, describe, emit, replace_uses
from passes.onnx.prove.run_subgraph import Piece
from passes.onnx.prove.weight_expression import initializer_of, is_weight, stored
from passes.onnx.rewrite.derived_weight import derived_weight
from passes.onnx.shapes import Known, Point, known_shapes, points
from passes.onnx.weight_sizes import LINEAR

_BY_HEAD = [0, 2, 1, 3]
_LAYOUT = {"Reshape", "Transpose", "Slice", "Split", "Gather", "GatherND", "Expand", "Unsqueeze", "Squeeze"}


def ungroup_packed(imp: Importing) -> PassLog:
    """Rewrite every projection that is seen by head before it is cut into several values."""
    found = [(node, matmul) for node in imp.graph if node.op_type == "Reshape" and (matmul := _projection(node))]
    sources = [matmul.inputs[0] for _, matmul in found]
    alone = [(node, matmul) for node, matmul in found if sources.count(matmul.inputs[0]) == 1]
    known = [known_shapes(imp, p) for p in points(imp)] if alone else []
    matched, notes = 0, []
    for node, matmul in alone:
        try:
            matched += _ungroup(imp, node, matmul, known)
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("ungroup_packed", matched, tuple(notes))


def _projection(reshape: Any) -> Any:
    """The matrix multiplication whose result, with or without a bias, a Reshape alone reads; None: there is none."""
    maker = _maker(reshape.inputs[0])
    if maker is not None and maker.op_type == "Add" and any(_is_vector(v) for v in maker.inputs):
        maker = _maker(next(v for v in maker.inputs if not _is_vector(v)))
    return maker if maker is not None and maker.op_type in LINEAR and _can_move(maker) else None


def _can_move(matmul: Any) -> bool:
    """Whether the columns of its weights are found in what is stored: no Reshape comes between."""
    if matmul.op_type == "MatMul":
        weight, made = matmul.inputs[1], (node.op_type for node in _makers(matmul.inputs[1]))
        return is_weight(weight) and len(initializer_of(weight).const_value.shape) == 2 and "Reshape" not in made
    return all(stored(value) is not None for value in matmul.inputs[1:] if value is not None)


def _maker(value: Any) -> Any:
    return value.producer() if len(value.uses()) == 1 and not value.is_graph_output() else None


def _is_vector(value: Any) -> bool:
    """Whether it is a stored bias, one number for each of several columns."""
    return (found := stored(value)) is not None and len(found.const_value.shape) == 1 and found.const_value.size > 1


def _ungroup(imp: Importing, node: Any, matmul: Any, known: list[dict[Any, Known]]) -> bool:
    y, at = node.inputs[0], points(imp)
    if any(y not in k or len(k[y].shape) != 3 for k in known):
        return False
    width = known[0][y].shape[-1]
    head_dim = imp.facts.head_dim or _without_a_cache(node.outputs[0], known[0])
    ends = _ends(node.outputs[0], known, at, head_dim)
    if len(ends) < 2:
        return False
    columns = {end: _columns(imp, y, end, width, at) for end in ends}
    ends.sort(key=lambda end: int(columns[end].min()))
    order = np.concatenate([columns[end].reshape(-1) for end in ends])
    if set(order.tolist()) != set(range(width)):
        raise Declined("some columns of the projection are read in another way")
    _reorder(imp, matmul, order, width)
    if matmul.outputs[0] is not y:
        bias = y.producer()
        place = next(i for i, v in enumerate(bias.inputs) if _is_vector(v))
        derived_weight(imp, bias, place, "ungrouped", lambda numbers: numbers[order], (len(order),))
    y.shape = matmul.outputs[0].shape = None
    _split(imp, node, y, {end: columns[end].shape for end in ends}, at[0], known[0])
    return True


def _without_a_cache(by_head: Any, known: dict[Any, Known]) -> int:
    """The width of a head in an export that has no cache to tell it: of a Split's part, or of the view."""
    for user in _layout_users(by_head):
        cut = [user, *_layout_users(user.outputs[0])]
        part = next((node.outputs[0] for node in cut if node.op_type == "Split"), None)
        if part in known:
            return known[part].shape[-1]
    return known[by_head].shape[-1] if by_head in known else 0


def _layout_users(value: Any) -> list[Any]:
    return [user for user, _ in value.uses() if user.op_type in _LAYOUT and user.inputs[0] is value]


def _ends(value: Any, known: list[dict[Any, Known]], at: tuple[Point, Point], head_dim: int) -> list[Any]:
    """The last values of whole heads, [B, H, S, D] or [B, S, H, D], that only a change of layout leads to."""
    users = _layout_users(value)
    branches = [_ends(output, known, at, head_dim) for user in users for output in user.outputs]
    found = [end for branch in branches for end in branch]
    if found and all(branches) and len(users) == len(value.uses()) and not value.is_graph_output():
        return list(dict.fromkeys(found))
    if all(value in k and _by_head(k[value].shape, p, head_dim) for k, p in zip(known, at, strict=True)):
        return [value]
    if found:
        raise Declined(f"{value.name} is read by head and in another way")
    return []


def _by_head(shape: tuple[int, ...], at: Point, head_dim: int) -> bool:
    return len(shape) == 4 and (shape[0], shape[3]) == (at.batch, head_dim) and at.new in shape[1:3]


def _columns(imp: Importing, y: Any, end: Any, width: int, at: tuple[Point, Point]) -> np.ndarray:
    """The columns of y that an end has for each head: [H, D]."""
    piece, found = Piece(imp, [y], end), []
    for p in at:
        rows = np.arange(p.batch * p.new, dtype=np.float32).reshape(p.batch, p.new, 1) * width
        numbers = piece.run(p, {y: rows + np.arange(width, dtype=np.float32)})
        by_token = numbers if numbers.shape[1] == p.new else numbers.transpose(_BY_HEAD)
        columns = by_token - rows[..., None]
        if not np.array_equal(columns, np.broadcast_to(columns[:1, :1], columns.shape)):
            raise Declined("its heads are no columns of the projection")
        found.append(columns[0, 0].astype(np.int64))
    if not np.array_equal(*found) or found[0].min() < 0 or found[0].max() >= width:
        raise Declined("its heads are no columns of the projection")
    return found[0]


def _reorder(imp: Importing, matmul: Any, order: np.ndarray, width: int) -> None:
    """Give a matrix multiplication those of its columns, in that order; computed when they are read."""
    if matmul.op_type == "MatMul":
        tensor = initializer_of(matmul.inputs[1]).const_value
        turns = sum(node.op_type == "Transpose" for node in _makers(matmul.inputs[1]))
        axis = (len(tensor.shape) - 1 + turns) % 2
        shape = tuple(len(order) if i == axis else int(d) for i, d in enumerate(tensor.shape))
        derived_weight(imp, matmul, 1, "ungrouped", lambda numbers: np.take(numbers, order, axis=axis), shape)
        return
    for place in range(1, len(matmul.inputs)):
        if matmul.inputs[place] is None:
            continue
        old = tuple(int(d) for d in initializer_of(matmul.inputs[place]).const_value.shape)
        shape = (old[0] // width * len(order), *old[1:])
        derived_weight(imp, matmul, place, "ungrouped", _rows_in(order, width, shape), shape)
    matmul.attributes["N"] = ir.AttrInt64("N", len(order))


def _rows_in(order: np.ndarray, width: int, shape: tuple[int, ...]) -> Any:
    """The blocks, scales or zero points of columns in an order: whatever the shape, a column's lie side by side."""
    return lambda numbers: numbers.reshape(width, -1)[order].reshape(shape)


def _makers(value: Any) -> list[Any]:
    made = []
    while value.producer() is not None:
        made.append(value.producer())
        value = value.producer().inputs[0]
    return made


def _split(imp: Importing, node: Any, y: Any, shapes: dict[Any, tuple[int, ...]], at: Point, known: Any) -> None:
    names = [f"{v.name}.part" for v in shapes]
    widths = np.array([np.prod(shape) for shape in shapes.values()], np.int64)
    sizes = add_initializer(imp.graph, f"{y.name}.sizes", widths)
    split = emit(node, "Split", [y, sizes], {"axis": -1}, num_outputs=len(names), outputs=names)
    for (old, by_head), part in zip(shapes.items(), split.outputs, strict=True):
        part.type = old.type
        shape = add_initializer(imp.graph, f"{part.name}.by_head", np.array([0, 0, *by_head], np.int64))
        new = emit(node, "Reshape", [part, shape], {"allowzero": 0}, outputs=[f"{part.name}.heads"]).outputs[0]
        new.type = old.type
        if known[old].shape[1] != at.new:
            new = emit(node, "Transpose", [new], {"perm": _BY_HEAD}, outputs=[f"{part.name}.moved"]).outputs[0]
            new.type = old.type
        replace_uses(old, new)
