"""Float weights that a recipe gives a format -> the floats that their codes and scales stand for.

    MatMul(x, W)  ->  MatMul(x, W'), W' = round(W / s) s

The import does not run it: it makes the reference of `verify` for a bundle that `compile --quantise` quantised, from
the export again, by the scales that quantise_weights searches. Of the layout of quantised weights it uses nothing.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog
from passes.onnx.quantise.matrices import read_instead, weight_of
from passes.onnx.quantise.quantised_matrix import QuantisedMatrix, quantised_matrices
from passes.onnx.rewrite.quantise_weights import lazy_weight

_BLOCK = "block of fake_quantise"


def fake_quantise(imp: Importing) -> PassLog:
    """Replace every matrix of the recipe.

    Raises:
        UserError: the recipe does not fit the file (quantised_matrices).
    """
    chosen = quantised_matrices(imp)
    for matrix in chosen:
        value = _floats(imp, matrix)
        value.meta[_BLOCK] = matrix.format.block
        read_instead(matrix.matrix, value)
    return PassLog("fake_quantise", len(chosen))


def fake_block(node: Any) -> tuple[int, int]:
    """(K, block) of a matrix multiplication by a weight that the pass made; (0, 0) for other nodes."""
    found = weight_of(node)
    if found is None or _BLOCK not in found[0].meta:
        return 0, 0
    weight, transposed = found
    return int(weight.const_value.shape[1 if transposed else 0]), int(weight.meta[_BLOCK])


def _floats(imp: Importing, matrix: QuantisedMatrix) -> Any:
    name = f"{matrix.name}.fake"
    return lazy_weight(imp, name, lambda: ir.tensor(matrix.floats(), name=name), ir.DataType.FLOAT, matrix.shape)
