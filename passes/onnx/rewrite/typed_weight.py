"""A block-quantised weight in a typed tensor, as the operators with weights in bytes take it: unsigned codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Declined, Importing, add_initializer, emit, replace_uses
from passes.packed_codes import pack_codes

TYPES = {  # of tensors: (bits of a number, whether it is signed)
    ir.DataType.INT2: (2, True),
    ir.DataType.UINT2: (2, False),
    ir.DataType.INT4: (4, True),
    ir.DataType.UINT4: (4, False),
    ir.DataType.INT8: (8, True),
    ir.DataType.UINT8: (8, False),
}
_INT8_LEVEL = 4  # MatMulNBits' accuracy_level
_MOST_ZEROS = 1 << 20  # zero points that are looked at


class TypedWeight:
    """MatMulNBits' operands [q', scale', zero'] as values whose tensors are computed when they are read.

    `transposed`: q is [columns, K] and scale [columns, blocks]; else both lie the other way.
    """

    def __init__(self, imp: Importing, name: str, q: Any, scale: Any, zero: Any, transposed: bool, block: int) -> None:
        """Register the initialisers; nothing is read yet."""
        self._imp, self._name, self._block = imp, name, block
        self._bits, signed = TYPES[q.dtype]
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
            return pack_codes(padded, self._bits).reshape(columns, blocks, block // per)

        def unpadded() -> np.ndarray:
            return pack_codes((by_column(q, k) + shift).astype(np.uint8), self._bits)

        def zeros() -> np.ndarray:
            numbers = np.zeros((columns, blocks), np.int16) if zero is None else by_column(zero, blocks)
            return pack_codes((numbers + shift).astype(np.uint8), self._bits)

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
