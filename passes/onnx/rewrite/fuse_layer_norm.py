"""Layer norms in all their spellings -> LayerNormalization with a scale and a bias.

w * ((x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)) + b     decomposed, as exports before opset 17 have it; with or
                                                                without b (Cohere); w may have a row for each head
LayerNormalization(x, w)                                        b is a vector of zeros (StableLM, OLMo)
RMSNormalization(x - mean(x), w)                                the same, as onnxruntime.transformers writes Cohere
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
from passes.onnx.rewrite.fuse_rms_norm import check_epsilon, over_last_axis, root_mean_square
from passes.onnx.shapes import known_shapes, points

_OF_SQUARES = {"RMSNormalization", "SimplifiedLayerNormalization"}


def fuse_layer_norm(imp: Importing) -> PassLog:
    """Rewrite every norm that is proven one; others stay, with the reason in the log."""
    matched, notes = 0, []
    for node in list(imp.graph):
        try:
            if node.op_type == "ReduceMean":
                matched += _decomposed(imp, node)
            elif node.op_type == "LayerNormalization" and not node.domain:
                matched += _with_bias(imp, node)
            elif node.op_type in _OF_SQUARES:
                matched += _centred(imp, node)
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("fuse_layer_norm", matched, tuple(notes))


def _with_bias(imp: Importing, node: Any) -> bool:
    scale = stored(node.inputs[1])
    if scale is None or (len(node.inputs) > 2 and node.inputs[2] is not None):
        return False
    node.resize_inputs(3)
    node.replace_input_with(2, _zeros(imp, f"{node.outputs[0].name}.bias", scale))
    return True


def _centred(imp: Importing, norm: Any) -> bool:
    """A norm by the mean of squares, of what its mean was taken from."""
    x, scale = _what_is_centred(norm.inputs[0].producer()), stored(norm.inputs[1])
    if x is None or scale is None or attribute(norm, "axis", -1) != -1 or any(v.uses() for v in norm.outputs[1:]):
        return False
    attributes = {"axis": -1, "epsilon": attribute(norm, "epsilon", 1e-5)}
    inputs = [x, norm.inputs[1], _zeros(imp, f"{norm.outputs[0].name}.bias", scale)]
    made = emit(norm, "LayerNormalization", inputs, attributes, outputs=[f"{norm.outputs[0].name}.norm"]).outputs[0]
    replace_uses(norm.outputs[0], made)
    return True


def _what_is_centred(node: Any) -> Any:
    """The x of Sub(x, ReduceMean(x)) over the last axis; None for any other node."""
    if node is None or node.op_type != "Sub":
        return None
    x, average = node.inputs[0], node.inputs[1].producer()
    if average is None or average.op_type != "ReduceMean" or average.inputs[0] is not x or not over_last_axis(average):
        return None
    return x


def _decomposed(imp: Importing, mean: Any) -> bool:
    """From the mean of squares; the mean itself, and a mean of anything else, is none."""
    squares = mean.inputs[0].producer()
    centred = None if squares is None or squares.op_type not in ("Pow", "Mul") else squares.inputs[0].producer()
    if (x := _what_is_centred(centred)) is None:
        return False
    _, epsilon, scaled = root_mean_square(mean)
    weighted = [user for user, _ in scaled.outputs[0].uses()]
    if len(weighted) != 1 or weighted[0].op_type != "Mul":
        raise Declined("the normalised value is not multiplied by a weight vector")
    weight = next(v for v in weighted[0].inputs if v is not scaled.outputs[0])
    if not _is_vector(weight) and not _of_heads(imp, weight, x):
        raise Declined("the normalised value is not multiplied by a weight vector")
    last, bias = weighted[0], None
    users = [user for user, _ in last.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type == "Add" and not last.outputs[0].is_graph_output():
        other = next((v for v in users[0].inputs if v is not last.outputs[0]), None)
        if other is not None and other.const_value is not None and other.const_value.shape == weight.const_value.shape:
            last, bias = users[0], other
    check_epsilon(epsilon)
    if bias is None:
        bias = _zeros(imp, f"{last.outputs[0].name}.bias", weight)
    inputs, attributes = [x, weight, bias], {"axis": -1, "epsilon": epsilon}
    made = emit(last, "LayerNormalization", inputs, attributes, outputs=[f"{last.outputs[0].name}.norm"]).outputs[0]
    made.type, made.shape = last.outputs[0].type, last.outputs[0].shape
    replace_uses(last.outputs[0], made)
    return True


def _of_heads(imp: Importing, weight: Any, x: Any) -> bool:
    """Whether a weight has a row for each head of x [B, S, H, D] (Command R+)."""
    if weight.const_value is None or len(weight.const_value.shape) != 2:
        return False
    known = known_shapes(imp, points(imp)[0])
    return x in known and len(known[x].shape) == 4 and known[x].shape[2:] == tuple(weight.const_value.shape)


def _is_vector(value: Any) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 1


def _zeros(imp: Importing, name: str, like: Any) -> Any:
    return add_initializer(imp.graph, name, np.zeros(tuple(int(d) for d in like.const_value.shape), np.float32))
