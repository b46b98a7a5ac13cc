"""A projection whose columns have query, key and value of each head side by side -> those of all heads in turn.

    y = x W + b                                            y = x W' + b'
    by head = Transpose(Reshape(y, [B, S, H, 3 D]))   ->   q, k, v = Split(y, [H D, H D, H D])
    q, k, v = Split(by head, axis 3)                       q = Transpose(Reshape(q, [0, 0, H, D])) and so on

GPT-NeoX and its kin store their weights so. W' and b' have the same columns in another order, so every number stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, add_initializer, attribute, emit, replace_uses
from passes.onnx.prove.weight_expression import is_weight
from passes.onnx.shapes import Known, known_shapes, points

_BY_HEAD = [0, 2, 1, 3]


def ungroup_packed(imp: Importing) -> PassLog:
    """Rewrite every Split of the elements of heads that comes from a projection of its own."""
    nodes = [n for n in imp.graph if n.op_type == "Split" and not n.domain]
    known = known_shapes(imp, points(imp)[0]) if nodes else {}
    return PassLog("ungroup_packed", sum(_ungroup(imp, node, known) for node in nodes))


def _ungroup(imp: Importing, node: Any, known: dict[Any, Known]) -> bool:
    x = node.inputs[0]
    transpose = _alone(x, "Transpose")
    if transpose is not None:
        if attribute(transpose, "perm") != _BY_HEAD and list(attribute(transpose, "perm") or ()) != _BY_HEAD:
            return False
        x = transpose.inputs[0]
    reshape = _alone(x, "Reshape")
    if reshape is None or x not in known or len(known[x].shape) != 4 or any(v not in known for v in node.outputs):
        return False
    heads, width = known[x].shape[2:]
    y, parts = reshape.inputs[0], len(node.outputs)
    if attribute(node, "axis", 0) not in (-1, 3) or {known[v].shape[-1] for v in node.outputs} != {width // parts}:
        return False
    if y not in known or known[y].shape != (*known[x].shape[:2], heads * width):
        return False
    order = np.arange(heads * width).reshape(heads, parts, -1).swapaxes(0, 1).reshape(-1)
    bias, matmul = _alone(y, "Add"), _alone(y, "MatMul")
    if bias is not None:
        vector = next((place for place, v in enumerate(bias.inputs) if is_weight(v) and v.producer() is None), None)
        if vector is None or known[bias.inputs[vector]].shape != (heads * width,):
            return False
        matmul = _alone(bias.inputs[1 - vector], "MatMul")
        old = bias.inputs[vector]
    if matmul is None or not is_weight(matmul.inputs[1]) or known[matmul.inputs[1]].shape[1] != heads * width:
        return False
    if not _permute(imp, matmul, 1, order):
        return False
    if bias is not None:
        numbers = old.const_value.numpy()[order]
        bias.replace_input_with(vector, add_initializer(imp.graph, f"{old.name}.ungrouped", numbers))
    _split(imp, node, y, transpose is not None, heads, width // parts)
    return True


def _alone(value: Any, operator: str) -> Any:
    """The node of that operator that makes a value which one node reads; None where there is no such node."""
    maker = value.producer()
    return maker if maker is not None and maker.op_type == operator and len(value.uses()) == 1 else None


def _permute(imp: Importing, matmul: Any, place: int, order: np.ndarray) -> bool:
    """Give a matrix multiplication the same columns in another order; computed when they are read."""
    value, transposed, casts = matmul.inputs[place], False, []
    while value.producer() is not None:
        node = value.producer()
        transposed ^= node.op_type == "Transpose"
        casts += [node] if node.op_type == "Cast" else []
        if node.op_type not in ("Transpose", "Cast"):
            return False
        value = node.inputs[0]
    tensor = value.const_value
    axis = 0 if transposed else 1
    if len(tensor.shape) != 2:
        return False
    name = f"{value.name}.ungrouped"
    lazy = ir.LazyTensor(
        lambda: ir.tensor(np.take(tensor.numpy(), order, axis=axis), dtype=tensor.dtype),
        dtype=tensor.dtype,
        shape=tensor.shape,
        name=name,
    )
    new = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=lazy)
    imp.graph.register_initializer(new)
    for cast in casts[:1]:
        attributes = {"to": attribute(cast, "to")}
        new = emit(matmul, "Cast", [new], attributes, outputs=[f"{name}.cast"]).outputs[0]
    if transposed:
        new = emit(matmul, "Transpose", [new], {"perm": [1, 0]}, outputs=[f"{name}.transposed"]).outputs[0]
    matmul.replace_input_with(place, new)
    return True


def _split(imp: Importing, node: Any, y: Any, transposed: bool, heads: int, dim: int) -> None:
    names = [f"{v.name}.part" for v in node.outputs]
    sizes = add_initializer(imp.graph, f"{y.name}.sizes", np.array([heads * dim] * len(names), np.int64))
    split = emit(node, "Split", [y, sizes], {"axis": -1}, num_outputs=len(names), outputs=names)
    for old, part in zip(node.outputs, split.outputs, strict=True):
        part.type = old.type
        shape = add_initializer(imp.graph, f"{part.name}.by_head", np.array([0, 0, heads, dim], np.int64))
        new = emit(node, "Reshape", [part, shape], {"allowzero": 0}, outputs=[f"{part.name}.heads"]).outputs[0]
        new.type = old.type
        if transposed:
            new = emit(node, "Transpose", [new], {"perm": _BY_HEAD}, outputs=[f"{part.name}.moved"]).outputs[0]
            new.type = old.type
        replace_uses(old, new)
