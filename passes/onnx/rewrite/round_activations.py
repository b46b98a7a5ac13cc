"""What int8 activations mean, in ONNX's own operators: what is multiplied by quantised weights is rounded before it.

    y = MatMulNBits(x, q, s)                ->  y = MatMulNBits(rounded(x), q, s)
    y = MatMul(x, DequantizeLinear(q, s))   ->  y = MatMul(rounded(x), DequantizeLinear(q, s)), likewise Gemm
    y = MatMul(x, W') of fake_quantise      ->  y = MatMul(rounded(x), W'), likewise Gemm

where rounded(x) = codes * scale as in targets/cpu/kernels/linear_int.py. The import does not run it: it makes the
reference of `verify`, which onnxruntime computes in floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, add_initializer, attribute, emit
from passes.onnx.prove.weight_expression import stored
from passes.onnx.rewrite.fake_quantise import fake_block
from targets.cpu.dot import STEP, takes_codes


def round_activations(imp: Importing) -> PassLog:
    """Round what all matrix multiplications read whose blocks and rows are whole steps of 32 values."""
    made: dict[Any, Any] = {}
    for node in list(imp.graph):
        k, block = _quantised(node)
        if not k or not takes_codes(block, k):
            continue
        x = node.inputs[0]
        if x not in made:
            made[x] = _rounded(imp, node, x, k)
        node.replace_input_with(0, made[x])
    return PassLog("round_activations", len(made))


def _quantised(node: Any) -> tuple[int, int]:
    """(K, values of K with one scale) of a matrix multiplication by a quantised weight; (0, 0) for other nodes.

    A scale for all of K stands for any number of blocks, as passes/onnx/rewrite/lower_dequantize.py makes one of them.
    """
    if node.op_type == "MatMulNBits":
        return int(attribute(node, "K")), int(attribute(node, "block_size"))
    if (fake := fake_block(node))[0]:
        return fake
    if node.domain or node.op_type not in ("MatMul", "Gemm") or attribute(node, "transA", 0):
        return 0, 0
    made, transposed = node.inputs[1].producer(), bool(attribute(node, "transB", 0))
    if made is not None and made.op_type == "Transpose":
        made, transposed = made.inputs[0].producer(), not transposed
    q = stored(made.inputs[0]) if made is not None and made.op_type == "DequantizeLinear" else None
    if q is None or len(q.const_value.shape) != 2:
        return 0, 0
    return int(q.const_value.shape[1 if transposed else 0]), int(attribute(made, "block_size", 0)) or STEP


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
