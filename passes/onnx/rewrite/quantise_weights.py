"""Float weights that a recipe gives a format -> codes with scales, as an export that is quantised stores them.

    MatMul(x, W [K, N])             ->  MatMul(x, DequantizeLinear(q: INT4 [K, N], s [K / b, N]){axis 0, block_size b})
    MatMul(x, Transpose(W [N, K]))  ->  MatMul(x, Transpose(DequantizeLinear(q: INT8 [N, K], s [N, K / b]){axis 1}))
    Gather(E [V, W], ids)           ->  Gather(DequantizeLinear(q: INT8 [V, W], s [V, W / b]){axis 1}, ids)

lower_dequantize makes of these what it makes of an export's own. They allow int8 activations, as MatMulNBits at
accuracy_level 4 does: who asks for weights of 4 or 8 bits wants their speed, and int8 activations change less than such
weights do. Nothing is done without a recipe (`compile --quantise`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, emit
from passes.onnx.quantise.matrices import read_instead
from passes.onnx.quantise.quantised_matrix import QuantisedMatrix, quantised_matrices

_TYPES = {4: ir.DataType.INT4, 8: ir.DataType.INT8}


def quantise_weights(imp: Importing) -> PassLog:
    """Rewrite every matrix of the recipe.

    Raises:
        UserError: the recipe does not fit the file (quantised_matrices).
    """
    chosen = quantised_matrices(imp)
    for matrix in chosen:
        read_instead(matrix.matrix, _dequantised(imp, matrix))
    imp.facts.int8_activations |= bool(chosen)
    return PassLog("quantise_weights", len(chosen))


def _dequantised(imp: Importing, matrix: QuantisedMatrix) -> Any:
    dtype = _TYPES[matrix.format.bits]
    name = f"{matrix.name}.quantised"

    def codes() -> Any:
        return ir.tensor(matrix.codes().astype(dtype.numpy()), name=name)

    def scales() -> Any:
        return ir.tensor(matrix.scales(), name=f"{name}.scales")

    q = lazy_weight(imp, name, codes, dtype, matrix.shape)
    scale = lazy_weight(imp, f"{name}.scales", scales, ir.DataType.FLOAT16, matrix.scale_shape)
    first = next(iter(imp.graph))
    to = {"to": int(ir.DataType.FLOAT)}
    wide = emit(first, "Cast", [scale], to, outputs=[f"{name}.scales.float32"]).outputs[0]
    attributes = {"axis": matrix.axis, "block_size": matrix.format.block}
    made = emit(first, "DequantizeLinear", [q, wide], attributes, name=name, outputs=[f"{name}.floats"]).outputs[0]
    wide.type = made.type = ir.TensorType(ir.DataType.FLOAT)
    return made


def lazy_weight(imp: Importing, name: str, make: Callable[[], Any], dtype: Any, shape: tuple[int, ...]) -> Any:
    """A new initialiser whose tensor is computed when it is read."""
    unique, k = name, 0
    while unique in imp.graph.initializers:
        k += 1
        unique = f"{name}_{k}"
    tensor = ir.LazyTensor(make, dtype, ir.Shape(shape), name=unique)
    value = ir.Value(name=unique, const_value=tensor, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    imp.graph.register_initializer(value)
    return value
