"""A head that is the embedding written a second time -> the embedding itself, so that it is stored once.

    ids -> Gather(E [V, H])                           ids -> Gather(E [V, H])
    MatMul(x, W [H, V]), W = transposed E     ->      MatMul(x, Transpose(E))

Exporters that fold constants write a tied head so: optimum's SmolLM2-135M has 652 MB for 538 MB of weights. Equal means
equal bit for bit, so nothing that is computed changes.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.import_onnx.check_vocabulary import initializer_of, is_weight
from passes.import_onnx.state import Importing, PassLog, attribute, emit

_BLOCK = 4096  # rows of the embedding that are compared at a time


def tie_equal_head(imp: Importing) -> PassLog:
    """Let products whose weight is the embedding's numbers, as they are or transposed, read the embedding."""
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
            if weight is not table and (transposed := _same(table.const_value, weight.const_value)) is not None:
                _read_instead(weight, table, transposed)
                matched += 1
                break
    return PassLog("tie_equal_head", matched)


def _same(table: Any, weight: Any) -> bool | None:
    """False: the same numbers; True: transposed; None: others."""
    shape, other = tuple(table.shape), tuple(weight.shape)
    if table.dtype != weight.dtype or len(shape) != 2 or other not in (shape, shape[::-1]):
        return None
    equal = _equal_bits(table, weight, other != shape)
    for tensor in (table, weight):
        if hasattr(tensor, "release"):
            with contextlib.suppress(BufferError):  # somebody else looks at it still
                tensor.release()  # unmaps the file, whose pages would count as ours
    return other != shape if equal else None


def _equal_bits(table: Any, weight: Any, transposed: bool) -> bool:
    a, b = (np.asarray(t.numpy()) for t in (table, weight))
    b = b.T if transposed else b
    bits = np.dtype(f"u{a.dtype.itemsize}")
    blocks = (slice(i, i + _BLOCK) for i in range(0, len(a), _BLOCK))
    return all(
        np.array_equal(np.ascontiguousarray(a[s]).view(bits), np.ascontiguousarray(b[s]).view(bits)) for s in blocks
    )


def _read_instead(weight: Any, table: Any, transposed: bool) -> None:
    for user, index in list(weight.uses()):
        value = table
        if transposed:
            value = emit(user, "Transpose", [table], {"perm": [1, 0]}, outputs=[f"{weight.name}.tied"]).outputs[0]
            value.shape, value.type = weight.shape, ir.TensorType(weight.const_value.dtype)
        user.replace_input_with(index, value)
