"""Layer norms of single heads that each have a node (StableLM-2-12B) -> one of all heads.

Concat(LayerNormalization(Split(Transpose(x))[h], w[h], b[h]) for each head h, axis 1), x [B, S, H, D]
    ->  Transpose(LayerNormalization(x, w[H, D], b[H, D]))
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
from passes.onnx.prove.weight_expression import stored
from passes.onnx.shapes import known_shapes, points

_BY_HEAD = [0, 2, 1, 3]


def join_head_norms(imp: Importing) -> PassLog:
    """Rewrite every such Concat; others stay, with the reason in the log."""
    matched, notes = 0, []
    for node in list(imp.graph):
        norms = [value.producer() for value in node.inputs if value is not None] if node.op_type == "Concat" else []
        if not norms or any(norm is None or norm.op_type != "LayerNormalization" for norm in norms):
            continue
        try:
            _join(imp, node, norms)
            matched += 1
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("join_head_norms", matched, tuple(notes))


def _join(imp: Importing, concat: Any, norms: list[Any]) -> None:
    split = norms[0].inputs[0].producer()
    apart = [norm.inputs[0] for norm in norms]
    if split is None or split.op_type != "Split" or apart != list(split.outputs):
        raise Declined("the norms are not those of the parts of one Split, in their order")
    if attribute(concat, "axis") != 1 or attribute(split, "axis", 0) != 1 or attribute(norms[0], "axis", -1) != -1:
        raise Declined("the heads are not on axis 1, or the norms are not over the last one")
    epsilons = {attribute(norm, "epsilon", 1e-5) for norm in norms}
    if len(epsilons) != 1 or any(attribute(norm, "axis", -1) != -1 for norm in norms):
        raise Declined("the norms of the heads differ in more than their weights")
    known = known_shapes(imp, points(imp)[0])
    if any(part not in known or known[part].shape[1:2] != (1,) or len(known[part].shape) != 4 for part in apart):
        raise Declined("the parts are not single heads")
    turn = split.inputs[0].producer()
    if turn is None or turn.op_type != "Transpose" or list(attribute(turn, "perm") or []) != _BY_HEAD:
        raise Declined("the heads do not lie side by side before they are split")
    name = concat.outputs[0].name
    weights = [
        add_initializer(imp.graph, f"{name}.{kind}", _stacked(norms, place))
        for place, kind in ((1, "scale"), (2, "bias"))
    ]
    attributes = {"axis": -1, "epsilon": epsilons.pop()}
    inputs = [turn.inputs[0], *weights]
    norm = emit(concat, "LayerNormalization", inputs, attributes, outputs=[f"{name}.norm"]).outputs[0]
    norm.type = concat.outputs[0].type
    made = emit(concat, "Transpose", [norm], {"perm": _BY_HEAD}, outputs=[f"{name}.by_head"]).outputs[0]
    made.type, made.shape = concat.outputs[0].type, concat.outputs[0].shape
    replace_uses(concat.outputs[0], made)


def _stacked(norms: list[Any], place: int) -> np.ndarray:
    """The scales or the biases of the heads, one a row."""
    values = [stored(norm.inputs[place]) if len(norm.inputs) > place else None for norm in norms]
    tensors = [value.const_value for value in values if value is not None]
    if len(tensors) != len(norms) or any(len(tensor.shape) != 1 for tensor in tensors):
        raise Declined("a scale or a bias is no weight vector")
    if len({int(tensor.size) for tensor in tensors}) != 1:
        raise Declined("the scales of the heads have different widths")
    return np.stack([tensor.numpy().astype(np.float32) for tensor in tensors])
