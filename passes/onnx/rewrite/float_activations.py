"""Activations that a file rounds to 8 bits -> the floats before the rounding; weights stay as they are stored.

    q, s, z = DynamicQuantizeLinear(x)
    Mul(Cast(MatMulInteger(q, w, z, wz)), Mul(s, ws))          ->  MatMul(x, DequantizeLinear(w, ws, wz))
    MatMulIntegerToFloat(q, w, s, ws, z, wz, b)                ->  Add(MatMul(x, DequantizeLinear(w, ws, wz)), b)
    DynamicQuantizeMatMul(x, w, ws, wz, b)                     ->  the same
    DequantizeLinear(Gather(w, ids), ws, wz)                   ->  Gather(DequantizeLinear(w, ws, wz), ids)

The first is what onnxruntime's quantize_dynamic writes, the next two what its optimiser makes of it (level extended).
ONNX's dynamic rounding has one scale for all rows of a call, so that a token's numbers depend on the tokens beside it,
and verifying a draft would not give what decoding gives. So the graph keeps floats here, and the facts say that the
file allows int8 activations: compiled, they are rounded row by row, with one scale for 32 values
(targets/cpu/kernels/linear_int.py). The reference of `hetero-sd verify` runs this pass, too.
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
    constant,
    describe,
    emit,
    replace_uses,
)
from passes.onnx.prove.weight_expression import initializer_of, is_weight, stored

_ROUNDED = (ir.DataType.INT8, ir.DataType.UINT8)
_MICROSOFT = "com.microsoft"
_MOST_SCALES = 1 << 20


def float_activations(imp: Importing) -> PassLog:
    """Rewrite every such matrix multiplication; others stay, with the reason in the log."""
    weights, matched, notes = _Weights(imp), 0, []
    for node in list(imp.graph):
        rewrite = _REWRITES.get((node.domain, node.op_type))
        if rewrite is None:
            continue
        try:
            matched += rewrite(weights, node)
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("float_activations", matched, tuple(notes))


class _Weights:
    """Dequantised weights, one DequantizeLinear for each way a weight is read, before all that use them."""

    def __init__(self, imp: Importing) -> None:
        """Nothing is dequantised yet."""
        self.imp = imp
        self._first = next(iter(imp.graph), None)
        self._made: dict[Any, Any] = {}

    def floats(self, weight: Any, scale: Any, zero: Any, axis: int) -> Any:
        """(weight - zero) * scale; the scale is one number or a vector along `axis`. A Transpose comes after it."""
        maker = weight.producer()
        if maker is not None and maker.op_type == "Transpose" and attribute(maker, "perm", (1, 0)) in ((1, 0), [1, 0]):
            inner = self.floats(maker.inputs[0], scale, zero, 1 - axis)
            return self._once(("Transpose", inner), "Transpose", [inner], {"perm": [1, 0]}, f"{inner.name}.transposed")
        scale, zero = self._parameters(weight, scale, zero)
        key = (weight, scale, zero, axis)
        given = [weight, scale] + ([] if zero is None else [zero])
        return self._once(key, "DequantizeLinear", given, {"axis": axis}, f"{initializer_of(weight).name}.floats")

    def _once(self, key: Any, op_type: str, inputs: list[Any], attributes: dict[str, Any], name: str) -> Any:
        if key not in self._made:
            outputs = [f"{name}.{len(self._made)}"]
            self._made[key] = emit(self._first, op_type, inputs, attributes, name=outputs[0], outputs=outputs)
        return self._made[key].outputs[0]

    def rows(self, floats: Any, taken: Any) -> Any:
        """What a Gather of the stored weight takes, of the dequantised one; once, however often it is read."""
        if (taken, floats) not in self._made:
            outputs = [f"{taken.outputs[0].name}.floats"]
            inputs = [floats, taken.inputs[1]]
            self._made[taken, floats] = emit(taken, "Gather", inputs, {"axis": 0}, name=taken.name, outputs=outputs)
            self._made[taken, floats].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return self._made[taken, floats].outputs[0]

    def _parameters(self, weight: Any, scale: Any, zero: Any) -> tuple[Any, Any]:
        """Scale and zero point as one DequantizeLinear takes them: of one shape."""
        if not is_weight(weight) or stored(weight) is None:
            raise Declined(f"{weight.name} is computed, not a weight")
        dtype = stored(weight).const_value.dtype
        if dtype not in _ROUNDED or len(stored(weight).const_value.shape) != 2:
            raise Declined(f"{weight.name} is no matrix of 8-bit numbers")
        scales = _numbers(scale)
        if zero is None:
            return stored(scale), None
        zeros = _numbers(zero)
        if stored(zero).const_value.dtype != dtype:
            raise Declined(f"the zero points {zero.name} are not of the type of the weight")
        if zeros.shape == scales.shape:
            return stored(scale), stored(zero)
        if zeros.size != 1 and scales.size != 1:
            raise Declined(f"{zeros.size} zero points for {scales.size} scales")
        key = (scale, zero)
        if key not in self._made:
            shape = scales.shape if zeros.size == 1 else zeros.shape
            self._made[key] = tuple(
                add_initializer(self.imp.graph, f"{v.name}.spread", np.broadcast_to(x.reshape(-1), shape).copy())
                for v, x in ((scale, scales), (zero, zeros))
            )
        spread: tuple[Any, Any] = self._made[key]
        return spread


def _numbers(value: Any) -> np.ndarray:
    """A scale or zero point: one number, or a vector."""
    numbers = None if stored(value) is None else constant(stored(value), _MOST_SCALES)
    if numbers is None or (numbers.ndim > 1 and numbers.size > 1):
        raise Declined(f"{value.name} is neither one stored number nor a stored vector")
    return numbers if numbers.ndim <= 1 else numbers.reshape(-1)


def _matmul(weights: _Weights, node: Any, x: Any, weight: Any, y: Any, bias: Any = None) -> bool:
    """MatMul(x, weight) [+ bias] in the place of `node`, of which y is computed."""
    name = y.name
    new = emit(node, "MatMul", [x, weight], name=node.name, outputs=[f"{name}.matmul"]).outputs[0]
    new.type = ir.TensorType(ir.DataType.FLOAT)
    if bias is not None:
        new = emit(node, "Add", [new, bias], outputs=[f"{name}.biased"]).outputs[0]
    replace_uses(y, new)
    weights.imp.facts.int8_activations = True
    return True


def _scale_of(codes: Any) -> Any:
    """The scale of 8-bit activations, as what made them, or else as what dequantises them, has it."""
    maker = codes.producer()
    if maker is not None and maker.op_type == "DynamicQuantizeLinear" and codes is maker.outputs[0]:
        return maker.outputs[1]
    if maker is None or maker.op_type != "Gather" or attribute(maker, "axis", 0):
        raise Declined(f"{codes.name} is neither what a DynamicQuantizeLinear made nor rows of a weight")
    return next((user.inputs[1] for user, _ in codes.uses() if user.op_type == "DequantizeLinear"), None)


def _activations(weights: _Weights, codes: Any, scale: Any, zero: Any) -> Any:
    """The floats that 8-bit activations were made of: before a DynamicQuantizeLinear, or rows of a weight."""
    maker = codes.producer()
    if maker.op_type == "DynamicQuantizeLinear":
        if scale is not maker.outputs[1] or zero is not maker.outputs[2]:
            raise Declined(f"{codes.name} is read with another scale or zero point than its own")
        return maker.inputs[0]
    if _numbers(scale).size != 1:
        raise Declined("the activations are rows of a weight with several scales")
    return weights.rows(weights.floats(maker.inputs[0], scale, zero, 0), maker)


def _optional(node: Any, place: int) -> Any:
    return node.inputs[place] if len(node.inputs) > place else None


def _matmul_integer(weights: _Weights, node: Any) -> bool:
    own = _scale_of(node.inputs[0])
    casts = [user for user, _ in node.outputs[0].uses()]
    if not casts or any(c.op_type != "Cast" or attribute(c, "to") != ir.DataType.FLOAT for c in casts):
        raise Declined("its integers are used as they are, not cast to float32 and scaled")
    for y, scale, other in [_scaled(cast.outputs[0], own) for cast in casts]:
        x = _activations(weights, node.inputs[0], scale, _optional(node, 2))
        right = node.inputs[1].producer()
        if right is not None and right.op_type == "DynamicQuantizeLinear":
            weight = _activations(weights, node.inputs[1], other, _optional(node, 3))
        else:
            weight = weights.floats(node.inputs[1], other, _optional(node, 3), 1)
        _matmul(weights, node, x, weight, y)
    return True


def _scaled(value: Any, scale: Any) -> tuple[Any, Any, Any]:
    """(the product of a value, `scale` and one more factor; the scale; that factor); without a scale the first one."""
    found: list[Any] = []
    while len(found) < 2:
        users = [user for user, _ in value.uses()]
        if len(users) != 1 or users[0].op_type != "Mul" or value.is_graph_output():
            raise Declined("its integers are not multiplied by the scales of both operands")
        other = next(v for v in users[0].inputs if v is not value)
        found += _factors(other)
        value = users[0].outputs[0]
    scale = found[0] if scale is None else scale
    if len(found) != 2 or scale not in found:
        raise Declined("its integers are not multiplied by the scales of both operands")
    return value, scale, found[1 - found.index(scale)]


def _factors(value: Any) -> list[Any]:
    maker = value.producer()
    if maker is None or maker.op_type != "Mul" or maker.domain:
        return [value]
    return [factor for v in maker.inputs for factor in _factors(v)][:3]


def _integer_to_float(weights: _Weights, node: Any) -> bool:
    codes, weight, scale, weight_scale = node.inputs[:4]
    _scale_of(codes)
    x = _activations(weights, codes, scale, _optional(node, 4))
    floats = weights.floats(weight, weight_scale, _optional(node, 5), 1)
    return _matmul(weights, node, x, floats, node.outputs[0], _optional(node, 6))


def _dynamic_matmul(weights: _Weights, node: Any) -> bool:
    x, weight, scale = node.inputs[:3]
    floats = weights.floats(weight, scale, _optional(node, 3), 1)
    return _matmul(weights, node, x, floats, node.outputs[0], _optional(node, 4))


def _dequantise(weights: _Weights, node: Any) -> bool:
    """A DequantizeLinear of rows of a weight or of a transposed one; one of a weight is left to lower_dequantize."""
    rows = node.inputs[0].producer()
    if rows is not None and rows.op_type == "Transpose" and is_weight(rows.inputs[0]):
        if attribute(node, "block_size", 0):
            raise Declined("a transposed weight in blocks")
        axis = attribute(node, "axis", 1) % 2
        replace_uses(node.outputs[0], weights.floats(node.inputs[0], node.inputs[1], _optional(node, 2), axis))
        return True
    if rows is None or rows.op_type != "Gather" or attribute(rows, "axis", 0) or not is_weight(rows.inputs[0]):
        return False
    if _numbers(node.inputs[1]).size != 1 or attribute(node, "block_size", 0):
        raise Declined("rows of a weight with several scales are dequantised after they were taken")
    floats = weights.floats(rows.inputs[0], node.inputs[1], _optional(node, 2), 0)
    replace_uses(node.outputs[0], weights.rows(floats, rows))
    return True


_REWRITES = {
    ("", "MatMulInteger"): _matmul_integer,
    ("", "DequantizeLinear"): _dequantise,
    (_MICROSOFT, "MatMulIntegerToFloat"): _integer_to_float,
    (_MICROSOFT, "DynamicQuantizeMatMul"): _dynamic_matmul,
}
