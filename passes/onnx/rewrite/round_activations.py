"""What int8 activations mean, in ONNX's own operators: the input of a MatMulNBits is rounded before it.

    y = MatMulNBits(x, q, s)  ->  y = MatMulNBits(rounded(x), q, s)

where rounded(x) = codes * scale as in targets/cpu/kernels/linear_int.py. The import does not run it: it makes the
reference of `verify`, which onnxruntime computes in floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, add_initializer, attribute, emit
from targets.cpu.dot import STEP, takes_codes


def round_activations(imp: Importing) -> PassLog:
    """Round the inputs of all MatMulNBits whose blocks and rows are whole steps of 32 values."""
    made: dict[Any, Any] = {}
    nodes = [node for node in imp.graph if node.op_type == "MatMulNBits"]
    for node in nodes:
        k, block = attribute(node, "K"), attribute(node, "block_size")
        if not takes_codes(block, k):
            continue
        x = node.inputs[0]
        if x not in made:
            made[x] = _rounded(imp, node, x, k)
        node.replace_input_with(0, made[x])
    return PassLog("round_activations", len(made))


def _rounded(imp: Importing, node: Any, x: Any, k: int) -> Any:
    def number(name: str, value: Any) -> Any:
        return add_initializer(imp.graph, f"round_activations.{name}", np.array(value))

    def call(op_type: str, *inputs: Any, **attributes: Any) -> Any:
        return emit(node, op_type, list(inputs), attributes).outputs[0]

    def largest(value: Any) -> Any:
        if imp.graph.opset_imports[""] < 18:
            return call("ReduceMax", value, axes=[-1], keepdims=1)
        return call("ReduceMax", value, number("axis", np.array([-1], np.int64)), keepdims=1)

    zero = number("zero", np.float32(0))
    most, least = number("most", np.float32(127)), number("least", np.float32(-127))
    parts = call("Reshape", x, number("parts", np.array([-1, k // STEP, STEP], np.int64)))
    top = largest(call("Abs", parts))
    factor = call("Where", call("Greater", top, zero), call("Div", most, top), zero)
    codes = call("Round", call("Clip", call("Mul", parts, factor), least, most))
    rounded = call("Mul", codes, call("Mul", top, number("unit", np.float32(1 / 127))))
    whole = call("Reshape", rounded, call("Shape", x))
    whole.dtype, whole.shape = ir.DataType.FLOAT, x.shape
    return whole
