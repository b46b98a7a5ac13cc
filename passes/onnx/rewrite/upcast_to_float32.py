"""float16 or bfloat16 graph -> the same graph computing in float32; weights stay stored as they are.

    w: f16[K, N]                          w: f16[K, N]
    y: f16 = MatMul(x: f16, w)     ->     y: f32 = MatMul(x: f32, Cast(w, to=f32))

Scalars and vectors (norm weights, biases, mask constants) become float32 outright: they are small. Casts between
float types have nothing left to do and go. Shared with the reference of `hetero-sd verify`, so it stays this plain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FLOATS = (*_HALF, ir.DataType.FLOAT)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def upcast_to_float32(imp: Importing) -> PassLog:
    """Make every float value float32."""
    return PassLog("upcast_to_float32", upcast(imp.model))


def upcast(model: Any) -> int:
    """The pass on a bare model; returns how many weights, inputs and attributes were half precision."""
    graph = model.graph
    changed = 0
    for value in list(graph.initializers.values()):
        if value.dtype in _HALF or (value.const_value is not None and value.const_value.dtype in _HALF):
            _upcast_initializer(graph, value)
            changed += 1
    for value in (*graph.inputs, *graph.outputs):
        if value.dtype in _HALF:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            changed += 1
    for node in graph:
        for output in node.outputs:
            if output.dtype in _HALF:
                output.type = ir.TensorType(ir.DataType.FLOAT)
        for name in _TYPE_ATTRIBUTES:
            attr = node.attributes.get(name)
            if attr is not None and attr.type == ir.AttributeType.INT and attr.value in _HALF:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
                changed += 1
        attr = node.attributes.get("value")
        if attr is not None and attr.type == ir.AttributeType.TENSOR and attr.value.dtype in _HALF:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(attr.value.numpy().astype(np.float32)))
            changed += 1
    return changed


def _upcast_initializer(graph: Any, value: Any) -> None:
    tensor = value.const_value
    if len(tensor.shape) <= 1:
        value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT)
        return
    uses = tuple(value.uses())
    if not uses:
        return
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name} in float32")
    cast.outputs[0].name = f"{value.name}.float32"
    cast.outputs[0].shape, cast.outputs[0].type = value.shape, ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(graph[0], cast)
    for node, index in uses:
        node.replace_input_with(index, cast.outputs[0])
