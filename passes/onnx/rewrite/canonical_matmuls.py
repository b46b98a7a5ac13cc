"""Matrix multiplications and gates in the few forms that the vocabulary has.

Gemm(x, W, b)            ->  Add(MatMul(x, W), b)         W transposed stays a Transpose of the initialiser;
                             rows flattened to [B * S, K] before it and back after it stay [B, S, K], and those that
                             go from [B * S, H * D] to [B, S, H, D] at once do so from [B, S, H * D]
MatMul(x, W), MatMulNBits(x, ..)  of flattened rows, with or without an Add of a bias: the same
x / 8                    ->  x * 0.125
Reshape(x) to x's shape  ->  x
x * Sigmoid(x)           is  SiLU already; a Swish node (opset 24) or com.microsoft.QuickGelu(alpha 1) becomes it
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
    scalar,
)
from passes.onnx.prove.weight_expression import is_weight
from passes.onnx.shapes import Known, known_shapes, points


def canonical_matmuls(imp: Importing) -> PassLog:
    """Rewrite Gemm, idle Reshape, Swish and constant-size reshapes."""
    known = [known_shapes(imp, p) for p in points(imp)]
    matched, notes = 0, []
    for node in list(imp.graph):
        rewrite = _REWRITES.get((node.domain, node.op_type))
        try:
            matched += bool(rewrite is not None and rewrite(imp, node, known))
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("canonical_matmuls", matched, tuple(notes))


def _rows(imp: Importing, node: Any, y: Any, known: list[dict[Any, Known]]) -> tuple[Any, list[Any]] | None:
    """(value [B, S, K], values [B, S, N]) around a node on flattened rows that make y; 4-D values are made rows."""
    x = node.inputs[0]
    flat = x.producer()
    users = [user for user, _ in y.uses()]
    if flat is None or flat.op_type != "Reshape" or not users or any(u.op_type != "Reshape" for u in users):
        return None
    wide, backs = flat.inputs[0], [u.outputs[0] for u in users]
    if any(y not in k for k in known):
        return None
    columns = known[0][y].shape[-1]  # the weight may be half precision behind a Cast, so it is not asked
    for k in known:
        if wide not in k or len(k[wide].shape) not in (3, 4) or any(b not in k for b in backs):
            return None
        if x not in k or k[x].shape[-1] != np.prod(k[wide].shape[2:]):
            return None
        if any(k[b].shape[:2] != k[wide].shape[:2] or np.prod(k[b].shape[2:]) != columns for b in backs):
            return None
    if any(k[b].shape[2:] not in ((columns,), known[0][b].shape[-2:]) for k in known for b in backs):
        return None
    if len(known[0][wide].shape) == 4:
        shape = add_initializer(imp.graph, f"{x.name}.shape", np.array([0, 0, known[0][x].shape[-1]], np.int64))
        wide = emit(node, "Reshape", [wide, shape], {"allowzero": 0}, outputs=[f"{x.name}.rows"]).outputs[0]
    return wide, backs


def _div(imp: Importing, node: Any, known: list[dict[Any, Known]]) -> bool:
    divisor = scalar(node.inputs[1])
    if not divisor or node.inputs[1].const_value.dtype.is_integer():
        return False
    y = node.outputs[0]
    factor = add_initializer(imp.graph, f"{y.name}.factor", np.array(1.0 / divisor, np.float32))
    replace_uses(y, emit(node, "Mul", [node.inputs[0], factor], outputs=[f"{y.name}.scaled"]).outputs[0])
    return True


def _gemm(imp: Importing, node: Any, known: list[dict[Any, Known]]) -> bool:
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0 or attribute(node, "transA", 0):
        raise Declined("alpha, beta or transA is not neutral")
    x, weight, *bias = node.inputs
    rows = _rows(imp, node, node.outputs[0], known)
    x = x if rows is None else rows[0]
    if attribute(node, "transB", 0):
        name = f"{weight.name}.transposed"
        weight = emit(node, "Transpose", [weight], {"perm": [1, 0]}, outputs=[name]).outputs[0]
    matmul = emit(node, "MatMul", [x, weight], name=node.name, outputs=[f"{node.outputs[0].name}.matmul"]).outputs[0]
    if bias and bias[0] is not None:
        matmul = emit(node, "Add", [matmul, bias[0]], outputs=[f"{node.outputs[0].name}.biased"]).outputs[0]
    if rows is None:
        replace_uses(node.outputs[0], matmul)
        return True
    _replace_backs(imp, node, rows[1], matmul, known)
    return True


def _replace_backs(imp: Importing, node: Any, backs: list[Any], new: Any, known: list[dict[Any, Known]]) -> None:
    """Rows in place of what led back to them, or to their heads."""
    for back in backs:
        value, sizes = new, known[0][back].shape[2:]
        if len(sizes) == 2:
            target = add_initializer(imp.graph, f"{back.name}.by_head", np.array([0, 0, *sizes], np.int64))
            value = emit(node, "Reshape", [new, target], {"allowzero": 0}, outputs=[f"{back.name}.heads"]).outputs[0]
        value.shape, value.type = back.shape, back.type
        for k in known:
            k[value] = k[back]
            k[new] = Known(k[back].dtype, (*k[back].shape[:2], int(np.prod(sizes))))
        replace_uses(back, value)


def _flat(imp: Importing, node: Any, known: list[dict[Any, Known]]) -> bool:
    """A matrix multiplication of flattened rows, as quantisers make of a Gemm, becomes one of rows."""
    if node.inputs[0].producer() is None or node.inputs[0].producer().op_type != "Reshape":
        return False
    y, bias = node.outputs[0], None
    users = [user for user, _ in y.uses()]
    if len(users) == 1 and users[0].op_type == "Add":
        bias = next((v for v in users[0].inputs if v is not y), y)
        if not is_weight(bias) or any(bias not in k or len(k[bias].shape) != 1 for k in known):
            return False
        y = users[0].outputs[0]
    rows = _rows(imp, node, y, known)
    if rows is None or len(known[0][node.inputs[0]].shape) != 2:
        return False
    inputs, attributes = [rows[0], *node.inputs[1:]], dict(node.attributes)
    name = f"{node.outputs[0].name}.rows"
    new = emit(node, node.op_type, inputs, attributes, domain=node.domain, name=node.name, outputs=[name]).outputs[0]
    if bias is not None:
        new = emit(node, "Add", [new, bias], outputs=[f"{y.name}.rows"]).outputs[0]
    _replace_backs(imp, node, rows[1], new, known)
    return True


def _reshape(imp: Importing, node: Any, known: list[dict[Any, Known]]) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    if not all(x in k and y in k for k in known):
        return False
    if all(k[x].shape == k[y].shape for k in known):
        if y.is_graph_output() and (x.producer() is None or x.is_graph_output()):
            return False
        replace_uses(y, x)
        return True
    shapes = [k[y].shape for k in known]
    by_head = (
        len(shapes[0]) == 4 and shapes[0][2:] == shapes[1][2:] and all(k[x].shape[:2] == k[y].shape[:2] for k in known)
    )
    if not by_head or len(known[0][x].shape) != 3:
        return False
    target = np.array([0, 0, *shapes[0][2:]], np.int64)
    if node.inputs[1].const_value is not None and np.array_equal(node.inputs[1].const_value.numpy(), target):
        return False
    node.replace_input_with(1, add_initializer(imp.graph, f"{y.name}.shape", target))
    node.attributes.pop("allowzero", None)
    return True


def _swish(imp: Importing, node: Any, known: list[dict[Any, Known]]) -> bool:
    if attribute(node, "alpha", 1.0 if node.op_type == "Swish" else 1.702) != 1.0:
        raise Declined(f"alpha is {attribute(node, 'alpha')}, not 1")
    x, y = node.inputs[0], node.outputs[0]
    gate = emit(node, "Sigmoid", [x], outputs=[f"{y.name}.sigmoid"]).outputs[0]
    replace_uses(y, emit(node, "Mul", [x, gate], outputs=[f"{y.name}.silu"]).outputs[0])
    return True


_REWRITES = {
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _flat,
    ("com.microsoft", "MatMulNBits"): _flat,
    ("com.microsoft", "MatMulBnb4"): _flat,
    ("", "Div"): _div,
    ("", "Reshape"): _reshape,
    ("", "Swish"): _swish,
    ("com.microsoft", "QuickGelu"): _swish,
}
