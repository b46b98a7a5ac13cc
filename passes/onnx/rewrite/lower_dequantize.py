"""Block-quantised weights in typed tensors (INT2 to UINT8) -> bytes, repacked when the weights are read.

    MatMul(x, DequantizeLinear(q [K, N], scale [K / block, N]){axis 0})                 ->  MatMulNBits(x, q', scale')
    MatMul(x, Transpose(DequantizeLinear(q [N, K], scale [N, K / block]){axis 1}))      ->  MatMulNBits(x, q', scale')
    Gather(DequantizeLinear(q [V, W], scale [V, W / block]){axis 1}, ids)               ->  GatherBlockQuantized(q', ..)
    Gather(DequantizeLinear(q, scale), other indices)                                   ->  Gather(table of floats, ..)
    GatherBlockQuantized(q: INT4 or UINT4 [V, W], ids, scale)                           ->  the same with q': UINT8

2, 4 and 8 bits, signed or not, with or without zero points; one scale a column or one for all is one block of K. A Gemm
is a MatMul with an Add. Bytes hold unsigned numbers: signed ones and their zero points move up by half the range; zero
points that are all the middle of the range are left out. A table that both the embedding and the head read is stored
once, as MatMulNBits has it; small tables of positions, for which there is no kernel, become floats.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from passes.onnx.pass_context import (
    Declined,
    Importing,
    PassLog,
    attribute,
    describe,
    emit,
    replace_uses,
)
from passes.onnx.prove.weight_expression import initializer_of, is_weight, stored
from passes.onnx.rewrite.typed_weight import TYPES, TypedWeight

_SIXTEEN = (ir.DataType.INT16, ir.DataType.UINT16)
_SMALLEST_BLOCK = 16
_SAME_NUMBERS = ("Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze", "Flatten")


def lower_dequantize(imp: Importing) -> PassLog:
    """Rewrite every use of a dequantised weight; others stay, with the reason in the log."""
    matched, notes = 0, []
    for node in list(imp.graph):
        lower = _OPERATORS.get((node.domain, node.op_type))
        if lower is None:
            continue
        try:
            matched += lower(imp, node)
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("lower_dequantize", matched, tuple(notes))


def _dequantise(imp: Importing, node: Any) -> bool:
    if any(v is not None and stored(v) is None for v in node.inputs):
        raise Declined("what is dequantised is computed, not a weight (quantised activations are not supported)")
    tensors: list[Any] = [None if v is None else stored(v).const_value for v in node.inputs]
    q, scale, *zero = tensors
    _check_type(q)
    if zero and zero[0] is not None and (zero[0].dtype != q.dtype or tuple(zero[0].shape) != tuple(scale.shape)):
        raise Declined("the zero points are not of the type of the weight and the shape of the scales")
    if attribute(node, "output_dtype", 0) not in (0, ir.DataType.FLOAT):
        raise Declined(f"output_dtype={attribute(node, 'output_dtype')} is not supported")
    if not -2 <= attribute(node, "axis", 1) < 2:
        raise Declined(f"a matrix has no axis {attribute(node, 'axis')}")
    if len(q.shape) != 2:
        raise Declined(f"a weight with {len(q.shape)} dimensions; two are supported")
    _gemms(node)
    matmuls, rows, transposed = _users(node)
    columns, k = (int(d) for d in (q.shape if transposed else q.shape[::-1]))
    block = _block(node, scale, k, columns, transposed)
    packed = TypedWeight(imp, node.outputs[0].name, q, scale, zero[0] if zero else None, transposed, block)
    for user in matmuls:
        packed.matmul(user)
    for user in rows:
        if of_tokens(user.inputs[1]):
            packed.rows(user, user.inputs[1])
        else:
            user.replace_input_with(0, packed.floats())
    imp.graph.opset_imports["com.microsoft"] = 1
    return True


def _gather(imp: Importing, node: Any) -> bool:
    """INT4 and UINT4 as bytes; without zero points these have none, where bytes have the middle of the range."""
    if not all(is_weight(v) for i, v in enumerate(node.inputs) if i != 1 and v is not None):
        raise Declined("what is dequantised is computed, not a weight")
    q, scale, *zero = [initializer_of(v).const_value for i, v in enumerate(node.inputs) if i != 1 and v is not None]
    if q.dtype == ir.DataType.UINT8:
        return False
    _check_type(q)
    axes = attribute(node, "gather_axis", 0), attribute(node, "quantize_axis", 1)
    if len(q.shape) != 2 or len(scale.shape) != 2 or axes not in ((0, 1), (0, -1)):
        raise Declined(f"only rows of a matrix in blocks along its rows are supported, not axes {axes} of {q.shape}")
    block = attribute(node, "block_size", 128)
    TypedWeight(imp, node.inputs[0].name, q, scale, zero[0] if zero else None, True, block).rows(node, node.inputs[1])
    return True


_OPERATORS = {("", "DequantizeLinear"): _dequantise, ("com.microsoft", "GatherBlockQuantized"): _gather}


def _check_type(q: Any) -> None:
    if q.dtype not in TYPES:
        advice = ": quantise activations and weights to 8 bits" if q.dtype in _SIXTEEN else ""
        raise Declined(f"a weight of type {q.dtype.name}; {', '.join(t.name for t in TYPES)} are supported{advice}")


def _gemms(node: Any) -> None:
    """Gemm(x, weight, b) -> Add(MatMul(x, weight), b) where its weight is the dequantised one."""
    for user in [user for user, _ in node.outputs[0].uses() if user.op_type == "Gemm"]:
        neutral = attribute(user, "alpha", 1.0) == attribute(user, "beta", 1.0) == 1.0
        if not neutral or attribute(user, "transA", 0) or user.inputs[1] is not node.outputs[0]:
            raise Declined(f"alpha, beta or transA of {describe(user)} is not neutral, or its weight is another")
        weight, y = node.outputs[0], user.outputs[0]
        if attribute(user, "transB", 0):
            weight = emit(user, "Transpose", [weight], {"perm": [1, 0]}, outputs=[f"{y.name}.weight"]).outputs[0]
        inputs, name = [user.inputs[0], weight], f"{y.name}.matmul"
        new = emit(user, "MatMul", inputs, name=user.name, outputs=[name]).outputs[0]
        if len(user.inputs) > 2 and user.inputs[2] is not None:
            new.type = y.type
            new = emit(user, "Add", [new, user.inputs[2]], outputs=[f"{y.name}.biased"]).outputs[0]
        replace_uses(y, new)
        user.graph.remove(user, safe=True)


def of_tokens(ids: Any) -> bool:
    """Whether indices are input_ids, in whatever shape."""
    while ids.producer() is not None and ids.producer().op_type in _SAME_NUMBERS:
        ids = ids.producer().inputs[0]
    return bool(ids.name == "input_ids")


def _users(node: Any) -> tuple[list[Any], list[Any], bool]:
    """(matmuls, gathers, whether the weight is [columns, K] to them) that alone use a dequantised weight."""
    matmuls, rows, direct = list[Any](), list[Any](), list[Any]()
    for user, _ in node.outputs[0].uses():
        if user.op_type == "Transpose":
            matmuls += [(u, user.outputs[0]) for u, _ in user.outputs[0].uses()]
        elif user.op_type == "Gather" and user.inputs[0] is node.outputs[0] and not attribute(user, "axis", 0):
            rows.append(user)
        else:
            direct.append((user, node.outputs[0]))
    if any(u.op_type != "MatMul" or u.inputs[1] is not weight for u, weight in (*matmuls, *direct)):
        raise Declined(
            "something else than a matrix multiplication by it, or a Gather of its rows, uses the dequantised weight"
        )
    if bool(matmuls or rows) == bool(direct):
        raise Declined("the dequantised weight is used as it is and transposed" if direct else "nothing uses it")
    return [u for u, _ in (*matmuls, *direct)], rows, not direct


def _block(node: Any, scale: Any, k: int, columns: int, transposed: bool) -> int:
    """Weights of a column that share a scale."""
    axis, block = attribute(node, "axis", 1) % 2, attribute(node, "block_size", 0)
    shape = tuple(int(d) for d in scale.shape)
    if block:
        along_k = axis == (1 if transposed else 0)
        expected = (columns, -(-k // block)) if transposed else (-(-k // block), columns)
        if not along_k or shape != expected:
            raise Declined(f"blocks of {block} along axis {axis} with scales {shape} do not run along the sums")
        if block < _SMALLEST_BLOCK or block & (block - 1):
            raise Declined(f"blocks of {block} are not a power of two from {_SMALLEST_BLOCK} on")
        return int(block)
    if shape not in ((), (1,)) and (shape != (columns,) or axis != (0 if transposed else 1)):
        raise Declined(f"scales {shape} along axis {axis} are neither one a column nor one for all")
    return max(_SMALLEST_BLOCK, 1 << (k - 1).bit_length())
