"""Block-quantised weights in ONNX's own operator (QDQ form) -> MatMulNBits, repacked when the weights are read.

    MatMul(x, DequantizeLinear(q [K, N], scale [K / block, N]){axis 0})                 ->  MatMulNBits(x, q', scale')
    MatMul(x, Transpose(DequantizeLinear(q [N, K], scale [N, K / block]){axis 1}))      ->  MatMulNBits(x, q', scale')

4 and 8 bits, signed or not, with or without zero points; one scale a column or one for all is one block of K.
MatMulNBits stores unsigned numbers: signed ones and their zero points move up by half the range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.import_onnx.check_vocabulary import stored
from passes.import_onnx.state import Declined, Importing, PassLog, attribute, describe, emit

_BITS = {
    ir.DataType.INT4: (4, True),
    ir.DataType.UINT4: (4, False),
    ir.DataType.INT8: (8, True),
    ir.DataType.UINT8: (8, False),
}
_SMALLEST_BLOCK = 16


def lower_dequantize(imp: Importing) -> PassLog:
    """Rewrite every product with a dequantised weight; others stay, with the reason in the log."""
    matched, notes = 0, []
    for node in list(imp.graph):
        if node.domain or node.op_type != "DequantizeLinear":
            continue
        try:
            _lower(imp, node)
            matched += 1
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("lower_dequantize", matched, tuple(notes))


def _lower(imp: Importing, node: Any) -> None:
    if any(v is not None and stored(v) is None for v in node.inputs):
        raise Declined("what is dequantised is computed, not a weight (quantised activations are not supported)")
    tensors: list[Any] = [None if v is None else stored(v).const_value for v in node.inputs]
    q, scale, *zero = tensors
    if zero and zero[0] is not None and (zero[0].dtype != q.dtype or tuple(zero[0].shape) != tuple(scale.shape)):
        raise Declined("the zero points are not of the type of the weight and the shape of the scales")
    if attribute(node, "output_dtype", 0) not in (0, ir.DataType.FLOAT):
        raise Declined(f"output_dtype={attribute(node, 'output_dtype')} is not supported")
    if not -2 <= attribute(node, "axis", 1) < 2:
        raise Declined(f"a matrix has no axis {attribute(node, 'axis')}")
    if q.dtype not in _BITS or len(q.shape) != 2:
        raise Declined(f"a weight of {q.dtype.name} with {len(q.shape)} dimensions; 4 or 8 bits and two are supported")
    weight, transposed = node.outputs[0], False
    users = [user for user, _ in weight.uses()]
    if len(users) == 1 and users[0].op_type == "Transpose":
        weight, transposed = users[0].outputs[0], True
        users = [user for user, _ in weight.uses()]
    if not users or any(u.op_type != "MatMul" or u.inputs[1] is not weight for u in users):
        raise Declined("the dequantised weight is not the right operand of products alone")
    columns, k = q.shape if transposed else q.shape[::-1]
    block = _block(node, scale, int(k), int(columns), transposed)
    packed = _Packed(imp, node.outputs[0].name, q, scale, zero[0] if zero else None, transposed, block)
    for user in users:
        inputs = [user.inputs[0], *packed.values]
        attributes = {"K": int(k), "N": int(columns), "bits": packed.bits, "block_size": block, "accuracy_level": 0}
        name = user.outputs[0].name
        new = emit(user, "MatMulNBits", inputs, attributes, domain="com.microsoft", name=user.name, outputs=[name])
        old = user.outputs[0]
        old.name = f"{name}.exported"
        new.outputs[0].shape, new.outputs[0].type = old.shape, old.type
        old.replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
    imp.graph.opset_imports["com.microsoft"] = 1


def _block(node: Any, scale: Any, k: int, columns: int, transposed: bool) -> int:
    """Weights of a column that share a scale."""
    axis, block = attribute(node, "axis", 1) % 2, attribute(node, "block_size", 0)
    shape = tuple(int(d) for d in scale.shape)
    if block:
        along_k = axis == (1 if transposed else 0)
        expected = (columns, -(-k // block)) if transposed else (-(-k // block), columns)
        if not along_k or shape != expected:
            raise Declined(f"blocks of {block} along axis {axis} with scales {shape} do not run along the products")
        if block < _SMALLEST_BLOCK or block & (block - 1):
            raise Declined(f"blocks of {block} are not a power of two from {_SMALLEST_BLOCK} on")
        return int(block)
    if shape not in ((), (1,)) and (shape != (columns,) or axis != (0 if transposed else 1)):
        raise Declined(f"scales {shape} along axis {axis} are neither one a column nor one for all")
    return max(_SMALLEST_BLOCK, 1 << (k - 1).bit_length())


class _Packed:
    """MatMulNBits' operands [q', scale', zero'] as values whose tensors are computed when they are read."""

    def __init__(self, imp: Importing, name: str, q: Any, scale: Any, zero: Any, transposed: bool, block: int) -> None:
        """Register the initialisers; nothing is read yet."""
        self.bits, signed = _BITS[q.dtype]
        shift = 1 << (self.bits - 1) if signed else 0
        columns, k = (int(d) for d in (q.shape if transposed else q.shape[::-1]))
        blocks = -(-k // block)
        per = 8 // self.bits

        def by_column(x: Any, width: int) -> np.ndarray:
            """[columns, width] of a tensor that lies that way, transposed, a vector of columns or one number."""
            array = np.asarray(x.numpy())
            array = array.astype(np.float32 if x.dtype.is_floating_point() else np.int16)
            if array.ndim == 2:
                return array if transposed else array.T
            return np.broadcast_to(array.reshape(-1, 1), (columns, width))

        def weights() -> np.ndarray:
            padded = np.full((columns, blocks * block), shift, np.uint8)
            padded[:, :k] = by_column(q, k) + shift
            return _nibbles(padded, per).reshape(columns, blocks, block // per)

        def zeros() -> np.ndarray:
            numbers = np.zeros((columns, blocks), np.int16) if zero is None else by_column(zero, blocks)
            return _nibbles((numbers + shift).astype(np.uint8), per)

        parts: list[tuple[str, Any, Any, tuple[int, ...]]]
        parts = [("q", weights, ir.DataType.UINT8, (columns, blocks, block // per))]
        parts += [("scale", lambda: np.array(by_column(scale, blocks)), ir.DataType.FLOAT, (columns, blocks))]
        if zero is not None or not signed:  # without one, MatMulNBits takes the middle of the range
            parts += [("zero", zeros, ir.DataType.UINT8, (columns, -(-blocks // per)))]
        self.values = [_lazy(imp, f"{name}.{part}", *rest) for part, *rest in parts]


def _nibbles(x: np.ndarray, per: int) -> np.ndarray:
    """uint8 [rows, n] -> [rows, ceil(n / per)] with `per` values a byte, the low bits first."""
    if per == 1:
        return x
    x = np.pad(x, ((0, 0), (0, x.shape[1] % 2)))
    packed: np.ndarray = x[:, ::2] | (x[:, 1::2] << 4)
    return packed


def _lazy(imp: Importing, name: str, make: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    tensor = ir.LazyTensor(lambda: ir.tensor(make(), name=name), dtype, ir.Shape(shape), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    imp.graph.register_initializer(value)
    return value
