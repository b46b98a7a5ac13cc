"""Block-quantised weights in typed tensors (INT4, UINT4, INT8, UINT8) -> bytes, repacked when the weights are read.

    MatMul(x, DequantizeLinear(q [K, N], scale [K / block, N]){axis 0})                 ->  MatMulNBits(x, q', scale')
    MatMul(x, Transpose(DequantizeLinear(q [N, K], scale [N, K / block]){axis 1}))      ->  MatMulNBits(x, q', scale')
    Gather(DequantizeLinear(q [V, W], scale [V, W / block]){axis 1}, ids)               ->  GatherBlockQuantized(q', ..)
    Gather(DequantizeLinear(q, scale), other indices)                                   ->  Gather(table of floats, ..)
    GatherBlockQuantized(q: INT4 or UINT4 [V, W], ids, scale)                           ->  the same with q': UINT8

4 and 8 bits, signed or not, with or without zero points; one scale a column or one for all is one block of K. A Gemm
is a MatMul with an Add. Bytes hold unsigned numbers: signed ones and their zero points move up by half the range; zero
points that are all the middle of the range are left out. A table that both the embedding and the head read is stored
once, as MatMulNBits has it; small tables of positions, for which there is no kernel, become floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

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
from passes.onnx.prove.weight_expression import initializer_of, is_weight, stored

_BITS = {
    ir.DataType.INT4: (4, True),
    ir.DataType.UINT4: (4, False),
    ir.DataType.INT8: (8, True),
    ir.DataType.UINT8: (8, False),
}
_SIXTEEN = (ir.DataType.INT16, ir.DataType.UINT16)
_SMALLEST_BLOCK = 16
_INT8_LEVEL = 4  # MatMulNBits' accuracy_level
_SAME_NUMBERS = ("Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze", "Flatten")
_MOST_ZEROS = 1 << 20  # zero points that are looked at


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
    packed = _Packed(imp, node.outputs[0].name, q, scale, zero[0] if zero else None, transposed, block)
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
    """INT4 and UINT4 as bytes; without zero points these two have none, where bytes have the middle of the range."""
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
    _Packed(imp, node.inputs[0].name, q, scale, zero[0] if zero else None, True, block).rows(node, node.inputs[1])
    return True


_OPERATORS = {("", "DequantizeLinear"): _dequantise, ("com.microsoft", "GatherBlockQuantized"): _gather}


def _check_type(q: Any) -> None:
    if q.dtype not in _BITS:
        advice = ": quantise activations and weights to 8 bits" if q.dtype in _SIXTEEN else ""
        raise Declined(f"a weight of type {q.dtype.name}; {', '.join(t.name for t in _BITS)} are supported{advice}")


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


class _Packed:
    """MatMulNBits' operands [q', scale', zero'] as values whose tensors are computed when they are read.

    `transposed`: q is [columns, K] and scale [columns, blocks]; else both lie the other way.
    """

    def __init__(self, imp: Importing, name: str, q: Any, scale: Any, zero: Any, transposed: bool, block: int) -> None:
        """Register the initialisers; nothing is read yet."""
        self._imp, self._name, self._block = imp, name, block
        self._bits, signed = _BITS[q.dtype]
        shift = 1 << (self._bits - 1) if signed else 0
        columns, k = (int(d) for d in (q.shape if transposed else q.shape[::-1]))
        blocks, per = -(-k // block), 8 // self._bits
        self._columns, self._k, self._blocks, self._per = columns, k, blocks, per

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

        def unpadded() -> np.ndarray:
            return _nibbles((by_column(q, k) + shift).astype(np.uint8), per)

        def zeros() -> np.ndarray:
            numbers = np.zeros((columns, blocks), np.int16) if zero is None else by_column(zero, blocks)
            return _nibbles((numbers + shift).astype(np.uint8), per)

        def floats() -> np.ndarray:
            less = np.zeros((columns, blocks), np.int16) if zero is None else by_column(zero, blocks)
            factor = by_column(scale, blocks)
            if blocks > 1:
                less, factor = (np.repeat(x, block, axis=1)[:, :k] for x in (less, factor))
            table: np.ndarray = (by_column(q, k) - less).astype(np.float32) * factor
            return table

        self._weights, self._unpadded, self._floats = weights, unpadded, floats
        self._q: Any = None
        self._table: Any = None
        middle = 0 if signed else 1 << (self._bits - 1)
        implied = zero is None and signed
        if zero is not None and zero.size <= _MOST_ZEROS:
            implied = not np.any(zero.numpy() != middle)
        parts: list[tuple[str, Any, Any, tuple[int, ...]]]
        half = scale.dtype == ir.DataType.FLOAT16
        kept = ir.DataType.FLOAT16 if half else ir.DataType.FLOAT

        def scales() -> np.ndarray:
            return np.array(by_column(scale, blocks).astype(kept.numpy()))

        parts = [("scale", scales, kept, (columns, blocks))]
        if not implied:  # without one, both operators take the middle of the range
            parts += [("zero", zeros, ir.DataType.UINT8, (columns, -(-blocks // per)))]
        self._scales = [_in_float32(imp, _lazy(imp, f"{name}.{part}", *rest)) for part, *rest in parts]

    def matmul(self, old: Any) -> None:
        """MatMulNBits in the place of a MatMul with the weight."""
        if self._q is None:
            shape = (self._columns, self._blocks, self._block // self._per)
            self._q = _lazy(self._imp, f"{self._name}.q", self._weights, ir.DataType.UINT8, shape)
        attributes = {"K": self._k, "N": self._columns, "bits": self._bits, "block_size": self._block}
        inputs = [old.inputs[0], self._q, *self._scales]
        level = _INT8_LEVEL if self._imp.facts.int8_activations else 0
        self._replace(old, "MatMulNBits", inputs, {**attributes, "accuracy_level": level})

    def rows(self, old: Any, ids: Any) -> None:
        """GatherBlockQuantized in the place of a node that takes rows of the weight."""
        if self._k % self._per:
            raise Declined(f"rows of {self._k} weights of {self._bits} bits do not fill bytes")
        if self._table is not None:
            data = self._table
        elif self._q is not None and self._k % self._block == 0:
            shape = add_initializer(self._imp.graph, f"{self._name}.rows", np.array([self._columns, -1], np.int64))
            data = emit(old, "Reshape", [self._q, shape], outputs=[f"{self._name}.table"]).outputs[0]
        else:
            stored = (self._columns, self._k // self._per)
            data = _lazy(self._imp, f"{self._name}.table", self._unpadded, ir.DataType.UINT8, stored)
        self._table = data
        attributes = {"bits": self._bits, "block_size": self._block, "gather_axis": 0, "quantize_axis": 1}
        self._replace(old, "GatherBlockQuantized", [data, ids, *self._scales], attributes)

    def floats(self) -> Any:
        """The weight in float32."""
        return _lazy(self._imp, f"{self._name}.float32", self._floats, ir.DataType.FLOAT, (self._columns, self._k))

    def _replace(self, old: Any, operator: str, inputs: list[Any], attributes: dict[str, Any]) -> None:
        name = f"{old.outputs[0].name}.nbits"
        new = emit(old, operator, inputs, attributes, domain="com.microsoft", name=old.name, outputs=[name])
        replace_uses(old.outputs[0], new.outputs[0])


def _nibbles(x: np.ndarray, per: int) -> np.ndarray:
    """uint8 [rows, n] -> [rows, ceil(n / per)] with `per` values a byte, the low bits first."""
    if per == 1:
        return x
    x = np.pad(x, ((0, 0), (0, x.shape[1] % 2)))
    packed: np.ndarray = x[:, ::2] | (x[:, 1::2] << 4)
    return packed


def _in_float32(imp: Importing, value: Any) -> Any:
    """Half precision is cast up where it is read, as upcast_to_float32 writes it: the weight stays stored as it is."""
    if value.const_value.dtype != ir.DataType.FLOAT16:
        return value
    to = {"to": int(ir.DataType.FLOAT)}
    wide = emit(next(iter(imp.graph)), "Cast", [value], to, outputs=[f"{value.name}.float32"]).outputs[0]
    wide.shape, wide.type = value.shape, ir.TensorType(ir.DataType.FLOAT)
    return wide


def _lazy(imp: Importing, name: str, make: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    tensor = ir.LazyTensor(lambda: ir.tensor(make(), name=name), dtype, ir.Shape(shape), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    imp.graph.register_initializer(value)
    return value
