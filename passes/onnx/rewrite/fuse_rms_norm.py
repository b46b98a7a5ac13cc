"""Root-mean-square norms in all their spellings -> RMSNormalization (opset 23).

w * (x / sqrt(mean(x * x) + eps))     decomposed: Pow or Mul; Reciprocal, Div or Pow(-0.5); either order of Mul
x / sqrt(mean(x * x) + eps)           without a weight, as nanochat has it: the weight is one
SimplifiedLayerNormalization          onnxruntime's name for it
SkipSimplifiedLayerNormalization      the residual Add is written out again: Add, then the norm
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.onnx.operator_rule import LARGEST, SMALLEST
from passes.onnx.pass_context import (
    Declined,
    Importing,
    PassLog,
    add_initializer,
    attribute,
    constant,
    describe,
    emit,
    replace_uses,
    scalar,
)
from passes.onnx.shapes import known_shapes, points


def fuse_rms_norm(imp: Importing) -> PassLog:
    """Rewrite every norm that is proven one; others stay, with the reason in the log."""
    matched, notes = 0, []
    for node in list(imp.graph):
        try:
            if node.op_type == "ReduceMean":
                _decomposed(imp, node)
            elif node.op_type == "SimplifiedLayerNormalization":
                _simplified(node)
            elif node.op_type == "SkipSimplifiedLayerNormalization":
                _skip(node)
            else:
                continue
            matched += 1
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("fuse_rms_norm", matched, tuple(notes))


def _norm(before: Any, x: Any, weight: Any, epsilon: float, replaced: Any) -> None:
    check_epsilon(epsilon)
    attributes = {"axis": -1, "epsilon": epsilon}
    norm = emit(before, "RMSNormalization", [x, weight], attributes, name=f"norm of {x.name}")
    out = norm.outputs[0]
    out.name, out.type, out.shape = f"{replaced.name}.norm", replaced.type, replaced.shape
    replace_uses(replaced, out)


def check_epsilon(epsilon: float) -> None:
    """An epsilon that is a tensor is not among the attributes that check_nodes has read."""
    if not SMALLEST <= epsilon <= LARGEST:
        raise Declined(f"its epsilon is {epsilon:g}; it may be {SMALLEST:g} to {LARGEST:g}")


def _simplified(node: Any) -> None:
    if attribute(node, "axis", -1) != -1:
        raise Declined(f"it normalises axis {attribute(node, 'axis')}, not the last one")
    _norm(node, node.inputs[0], node.inputs[1], attribute(node, "epsilon", 1e-5), node.outputs[0])


def _skip(node: Any) -> None:
    x, skip, weight, *bias = node.inputs
    epsilon = attribute(node, "epsilon", 1e-12)
    check_epsilon(epsilon)  # before anything is written
    if any(o.uses() for o in node.outputs[1:3]):
        raise Declined("its mean or variance output is used")
    total = emit(node, "Add", [x, skip], outputs=[f"{node.outputs[0].name}.sum"]).outputs[0]
    if bias and bias[0] is not None:
        total = emit(node, "Add", [total, bias[0]], outputs=[f"{node.outputs[0].name}.biased"]).outputs[0]
    total.type = node.outputs[0].type
    if len(node.outputs) > 3:
        replace_uses(node.outputs[3], total)
    _norm(node, total, weight, epsilon, node.outputs[0])


def root_mean_square(mean: Any) -> tuple[Any, float, Any]:
    """(x, epsilon, the node that computes x / sqrt(mean(x * x) + epsilon)), from the mean.

    Raises:
        Declined: it is no such mean.
    """
    x = _squared(mean.inputs[0].producer())
    if not attribute(mean, "keepdims", 1) or not over_last_axis(mean):
        raise Declined("the mean is not over the last axis with the dimension kept")
    add = _only_user(mean.outputs[0], "Add")
    epsilon = next((e for v in add.inputs if (e := scalar(v)) is not None), None)
    if epsilon is None:
        raise Declined("no constant epsilon is added to the mean of squares")
    return x, epsilon, _scaled(x, add.outputs[0])


def _decomposed(imp: Importing, mean: Any) -> None:
    x, epsilon, scaled = root_mean_square(mean)
    users = [user for user, _ in scaled.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type == "Mul":
        weight = next((v for v in users[0].inputs if v is not scaled.outputs[0]), None)
        if weight is not None and weight.const_value is not None and len(weight.const_value.shape) == 1:
            _norm(users[0], x, weight, epsilon, users[0].outputs[0])
            return
    check_epsilon(epsilon)  # before anything is written
    widths = {known[x].shape[-1] if x in known else 0 for known in (known_shapes(imp, p) for p in points(imp))}
    if len(widths) > 1 or 0 in widths:
        raise Declined("the normalised value is not multiplied by a weight vector, and its width is not fixed")
    ones = np.ones(widths.pop(), np.float32)
    _norm(scaled, x, add_initializer(imp.graph, f"{scaled.outputs[0].name}.ones", ones), epsilon, scaled.outputs[0])


def _squared(node: Any) -> Any:
    if node is not None and node.op_type == "Pow" and scalar(node.inputs[1]) == 2.0:
        return node.inputs[0]
    if node is not None and node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return node.inputs[0]
    raise Declined("the mean is not of squares")


def over_last_axis(mean: Any) -> bool:
    """Whether a ReduceMean is one over the last axis."""
    axes = attribute(mean, "axes")
    if axes is None and len(mean.inputs) > 1:
        numbers = constant(mean.inputs[1])
        axes = None if numbers is None else numbers.tolist()
    x = mean.inputs[0]
    rank = len(x.shape) if x.shape is not None else None
    return axes is not None and list(np.asarray(axes).reshape(-1)) in ([-1], [None if rank is None else rank - 1])


def _only_user(value: Any, op_type: str) -> Any:
    users = [node for node, _ in value.uses()]
    if len(users) != 1 or users[0].op_type != op_type:
        raise Declined(f"{value.name} is not used by one {op_type} alone")
    return users[0]


def _scaled(x: Any, variance: Any) -> Any:
    """The node that computes x / sqrt(variance)."""
    users = [node for node, _ in variance.uses()]
    if len(users) == 1 and users[0].op_type == "Pow" and scalar(users[0].inputs[1]) == -0.5:
        inverse = users[0].outputs[0]
    else:
        root = _only_user(variance, "Sqrt").outputs[0]
        users = [node for node, _ in root.uses()]
        if len(users) != 1:
            raise Declined("the square root has several users")
        if users[0].op_type == "Div" and users[0].inputs[0] is x:
            return users[0]
        one_over = users[0].op_type == "Div" and scalar(users[0].inputs[0]) == 1.0
        if users[0].op_type != "Reciprocal" and not one_over:
            raise Declined("x is not divided by the square root")
        inverse = users[0].outputs[0]
    node = _only_user(inverse, "Mul")
    if x not in node.inputs:
        raise Declined("what is scaled is not what was squared")
    return node
