"""bfloat16 weights -> float32, one at a time when they are read.

    w: bf16[K, N]; MatMul(x, Cast(w, to=f32))     ->     w: f32[K, N]; MatMul(x, w)

No kernel reads bfloat16. float32 holds every such number, in twice the bytes; float16 would not: trained weights have
numbers below 2^-17, where it loses bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog


def widen_bfloat16(imp: Importing) -> PassLog:
    """Give every bfloat16 initialiser a float32 tensor that is computed when it is asked for."""
    matched = 0
    for value in imp.graph.initializers.values():
        if value.const_value is None or value.const_value.dtype != ir.DataType.BFLOAT16:
            continue
        value.const_value = _widened(value.const_value, value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT)
        matched += 1
    notes = (f"{matched} bfloat16 weights become float32, which is exact and twice as large",) if matched else ()
    return PassLog("widen_bfloat16", matched, notes)


def _widened(tensor: Any, name: str) -> Any:
    def read() -> Any:
        numbers = tensor.numpy().astype(np.float32)
        if hasattr(tensor, "release"):
            tensor.release()  # unmaps the file, whose pages would count as ours
        return ir.tensor(numbers, name=name)

    return ir.LazyTensor(read, ir.DataType.FLOAT, tensor.shape, name=name)
