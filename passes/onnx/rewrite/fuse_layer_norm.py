"""Layer norms in all their spellings -> LayerNormalization with a scale and a bias.

w * ((x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)) + b     decomposed, as exports before opset 17 have it; with or
                                                                without b (Cohere)
LayerNormalization(x, w)                                        b is a vector of zeros (StableLM, OLMo)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.onnx.pass_context import Declined, Importing, PassLog, add_initializer, describe, emit, replace_uses
from passes.onnx.prove.weight_expression import stored
from passes.onnx.rewrite.fuse_rms_norm import check_epsilon, over_last_axis, root_mean_square


def fuse_layer_norm(imp: Importing) -> PassLog:
    """Rewrite every norm that is proven one; others stay, with the reason in the log."""
    matched, notes = 0, []
    for node in list(imp.graph):
        try:
            if node.op_type == "ReduceMean":
                matched += _decomposed(imp, node)
            elif node.op_type == "LayerNormalization" and not node.domain:
                matched += _with_bias(imp, node)
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


def _decomposed(imp: Importing, mean: Any) -> bool:
    """From the mean of squares; the mean itself, and a mean of anything else, is none."""
    squares = mean.inputs[0].producer()
    centred = None if squares is None or squares.op_type not in ("Pow", "Mul") else squares.inputs[0].producer()
    if centred is None or centred.op_type != "Sub":
        return False
    x, average = centred.inputs[0], centred.inputs[1].producer()
    if average is None or average.op_type != "ReduceMean" or average.inputs[0] is not x or not over_last_axis(average):
        return False
    _, epsilon, scaled = root_mean_square(mean)
    weighted = [user for user, _ in scaled.outputs[0].uses()]
    if len(weighted) != 1 or weighted[0].op_type != "Mul":
        raise Declined("the normalised value is not multiplied by a weight vector")
    weight = next(v for v in weighted[0].inputs if v is not scaled.outputs[0])
    if not _is_vector(weight):
        raise Declined("the normalised value is not multiplied by a weight vector")
    last, bias = weighted[0], None
    users = [user for user, _ in last.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type == "Add" and not last.outputs[0].is_graph_output():
        other = next((v for v in users[0].inputs if v is not last.outputs[0]), None)
        if _is_vector(other):
            last, bias = users[0], other
    check_epsilon(epsilon)
    if bias is None:
        bias = _zeros(imp, f"{last.outputs[0].name}.bias", weight)
    inputs, attributes = [x, weight, bias], {"axis": -1, "epsilon": epsilon}
    made = emit(last, "LayerNormalization", inputs, attributes, outputs=[f"{last.outputs[0].name}.norm"]).outputs[0]
    made.type, made.shape = last.outputs[0].type, last.outputs[0].shape
    replace_uses(last.outputs[0], made)
    return True


def _is_vector(value: Any) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 1


def _zeros(imp: Importing, name: str, like: Any) -> Any:
    return add_initializer(imp.graph, name, np.zeros(tuple(int(d) for d in like.const_value.shape), np.float32))
