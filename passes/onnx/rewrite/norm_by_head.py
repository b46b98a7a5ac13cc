"""Norms of single heads (Qwen3's q and k norm, Phi's layer norms) -> always on [B, S, heads, head_dim].

    RMSNorm(Reshape(x, [B, S * H, D]))              ->  RMSNorm(Reshape(x, [0, 0, H, D])), then as before
    RMSNorm(Transpose(y, [0, 2, 1, 3]))             ->  Transpose(RMSNorm(y), [0, 2, 1, 3])
    RMSNorm(x), x [B, H, S, D] after a rotation     ->  Transpose(RMSNorm(Transpose(x)))

LayerNorm likewise. All keep every number: a norm looks at the last axis only. After it, head-wise norms lie row by row
like the projections they follow, and no transpose is left between them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.onnx.pass_context import (
    Declined,
    Importing,
    PassLog,
    add_initializer,
    attribute,
    describe,
    emit,
    replace_uses,
)
from passes.onnx.shapes import Known, known_shapes, points

_NORMS = ("RMSNormalization", "LayerNormalization")


def norm_by_head(imp: Importing) -> PassLog:
    """Rewrite norms behind a Reshape or Transpose, and those of heads that lie before the positions."""
    at = points(imp)
    shapes = [known_shapes(imp, point) for point in at]
    by_position = {  # values [B, H, S, D]
        value
        for value, found in shapes[0].items()
        if found.shape[2:] == (at[0].new, imp.facts.head_dim)
        and value in shapes[1]
        and shapes[1][value].shape[2:] == (at[1].new, imp.facts.head_dim)
    }
    known = shapes[0]
    matched, notes = 0, []
    for node in list(imp.graph):
        if node.op_type not in _NORMS or node.inputs[0].producer() is None:
            continue
        try:
            maker = node.inputs[0].producer()
            if maker.op_type != "Transpose" and node.inputs[0] in by_position:
                maker = _there_and_back(node, known)
            if maker.op_type == "Transpose":
                matched += _under_transpose(node, maker, known)
            if node.inputs[0].producer().op_type == "Reshape":
                matched += _by_head(imp, node, node.inputs[0].producer(), known)
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("norm_by_head", matched, tuple(notes))


def _there_and_back(node: Any, known: dict[Any, Known]) -> Any:
    """Two transposes before a norm that undo each other; the second one."""
    x, perm = node.inputs[0], [0, 2, 1, 3]
    there = emit(node, "Transpose", [x], {"perm": perm}, outputs=[f"{x.name}.by_head"]).outputs[0]
    batch, heads, new, dim = known[x].shape
    known[there] = Known(known[x].dtype, (batch, new, heads, dim))
    back = emit(node, "Transpose", [there], {"perm": perm}, outputs=[f"{x.name}.again"])
    there.type = back.outputs[0].type = x.type
    node.replace_input_with(0, back.outputs[0])
    return back


def _under_transpose(node: Any, transpose: Any, known: dict[Any, Known]) -> int:
    perm = attribute(transpose, "perm")
    if perm is None or perm[-1] != len(perm) - 1:
        raise Declined("it normalises an axis that a transpose moves")
    if any(
        value is not None and value.const_value is not None and len(value.const_value.shape) != 1
        for value in node.inputs[1:]
    ):
        raise Declined("each head has a scale of its own, and a transpose comes before")
    y = node.outputs[0]
    norm = emit(node, node.op_type, [transpose.inputs[0], *node.inputs[1:]], name=node.name)
    norm.attributes.update(node.attributes)
    norm.outputs[0].name, norm.outputs[0].type = f"{y.name}.untransposed", y.type
    if transpose.inputs[0] in known:
        known[norm.outputs[0]] = known[transpose.inputs[0]]
    moved = emit(node, "Transpose", [norm.outputs[0]], {"perm": perm}, outputs=[f"{y.name}.transposed"]).outputs[0]
    moved.type, moved.shape = y.type, y.shape
    replace_uses(y, moved)
    return 1


def _by_head(imp: Importing, node: Any, reshape: Any, known: dict[Any, Known]) -> int:
    x, r, y = reshape.inputs[0], reshape.outputs[0], node.outputs[0]
    if x not in known or r not in known or len(known[x].shape) != 3 or len(known[r].shape) != 3:
        return 0
    width, dim = known[x].shape[-1], known[r].shape[-1]
    if dim == width or width % dim:
        return 0
    if any(user.op_type != "Reshape" for user, _ in y.uses()) or len(r.uses()) != 1:
        raise Declined("a norm of single heads is not followed by a Reshape")
    heads = add_initializer(imp.graph, f"{r.name}.by_head", np.array([0, 0, width // dim, dim], np.int64))
    by_head = emit(node, "Reshape", [x, heads], {"allowzero": 0}, outputs=[f"{r.name}.heads"])
    node.replace_input_with(0, by_head.outputs[0])
    rows = add_initializer(imp.graph, f"{r.name}.rows", np.array([0, 0, width], np.int64))
    for user, _ in tuple(y.uses()):
        if user.outputs[0] in known and known[user.outputs[0]].shape == known[x].shape:
            user.replace_input_with(1, rows)
            user.attributes.pop("allowzero", None)
    y.shape = None
    return 1
