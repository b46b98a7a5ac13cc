"""A head that is the embedding written a second time -> the embedding itself, so that it is stored once.

    ids -> Gather(E [V, H])                           ids -> Gather(E [V, H])
    MatMul(x, W [H, V]), W = transposed E     ->      MatMul(x, Transpose(E))

Exporters that fold constants write a tied head so: optimum's SmolLM2-135M has 652 MB for 538 MB of weights. Equal means
equal bit for bit, so nothing that is computed changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, attribute, emit
from passes.onnx.prove.weight_expression import initializer_of, is_weight

_BLOCK = 4096  # rows of the embedding that are compared at a time


def tie_equal_head(imp: Importing) -> PassLog:
    """Let matrix multiplications by the embedding's numbers, as they are or transposed, read the embedding."""
    tables = {
        initializer_of(n.inputs[0]): None
        for n in imp.graph
        if n.op_type == "Gather" and not n.domain and n.inputs[1].name == "input_ids" and is_weight(n.inputs[0])
        if not attribute(n, "axis", 0)
    }
    matched = 0
    for node in list(imp.graph):
        if node.op_type != "MatMul" or node.domain or not is_weight(node.inputs[1]):
            continue
        weight = initializer_of(node.inputs[1])
        for table in tables:
            if weight is not table and (transposed := same_numbers(table.const_value, weight.const_value)) is not None:
                _read_instead(weight, table, transposed)
                matched += 1
                break
    return PassLog("tie_equal_head", matched)


def same_numbers(table: Any, weight: Any) -> bool | None:
    """Whether a tensor has the numbers of a table: False: as they are; True: transposed; None: others."""
    shape, other = tuple(table.shape), tuple(weight.shape)
    if table.dtype != weight.dtype or len(shape) != 2 or other not in (shape, shape[::-1]):
        return None
    blocks = ((start, min(start + _BLOCK, shape[0])) for start in range(0, shape[0], _BLOCK))
    equal = all(np.array_equal(_rows(table, *at, False), _rows(weight, *at, other != shape)) for at in blocks)
    return other != shape if equal else None


def _rows(tensor: Any, start: int, stop: int, transposed: bool) -> np.ndarray:
    """The bits of some rows, or columns, copied; of a file only they are mapped, so that no more memory is taken."""
    numbers: np.ndarray
    if isinstance(tensor, ir.ExternalTensor):
        stored = tensor.dtype.numpy()
        numbers = np.memmap(tensor.path, stored, "r", tensor.offset or 0, tuple(int(d) for d in tensor.shape))
    else:
        numbers = np.asarray(tensor.numpy())
    chosen = np.ascontiguousarray(numbers[:, start:stop].T if transposed else numbers[start:stop])
    return chosen.view(np.dtype(f"u{chosen.dtype.itemsize}"))


def _read_instead(weight: Any, table: Any, transposed: bool) -> None:
    for user, index in list(weight.uses()):
        value = table
        if transposed:
            value = emit(user, "Transpose", [table], {"perm": [1, 0]}, outputs=[f"{weight.name}.tied"]).outputs[0]
            value.shape, value.type = weight.shape, ir.TensorType(weight.const_value.dtype)
        user.replace_input_with(index, value)
