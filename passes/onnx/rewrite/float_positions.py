"""Positions whose table is stored in blocks -> a table of floats, for which alone there is a kernel.

    GatherBlockQuantized(q [P, W], positions, scale [P, W / block])  ->  Gather(table [P, W], positions)

Olive's quantisers take the table of positions for another embedding (GPT-2, OPT). The numbers are those of the blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, attribute, emit, replace_uses
from passes.onnx.prove.weight_expression import initializer_of, is_weight
from passes.onnx.rewrite.lower_dequantize import of_tokens
from passes.onnx.rewrite.quantise_weights import lazy_weight
from passes.packed_codes import BITS, unpack_codes


def float_positions(imp: Importing) -> PassLog:
    """Rewrite every Gather of rows in blocks by anything but input_ids."""
    matched = 0
    for node in list(imp.graph):
        if (node.domain, node.op_type) == ("com.microsoft", "GatherBlockQuantized") and not of_tokens(node.inputs[1]):
            matched += _rewrite(imp, node)
    return PassLog("float_positions", matched)


def _rewrite(imp: Importing, node: Any) -> bool:
    weights = [v for i, v in enumerate(node.inputs) if i != 1 and v is not None]
    if not all(is_weight(v) for v in weights):
        return False
    q, scale, *zero = [initializer_of(v).const_value for v in weights]
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size", 128)
    axes = attribute(node, "gather_axis", 0), attribute(node, "quantize_axis", 1)
    if q.dtype != ir.DataType.UINT8 or bits not in BITS or len(q.shape) != 2 or axes not in ((0, 1), (0, -1)):
        return False  # refused with the reason by check_vocabulary
    rows, width = int(q.shape[0]), int(q.shape[1]) * 8 // bits
    if tuple(scale.shape) != (rows, -(-width // block)):
        return False

    def made() -> Any:
        shared = np.arange(width) // block  # the block of a column
        middle = _codes(zero[0].numpy(), bits)[:, shared] if zero else np.full((1, 1), 1 << (bits - 1), np.int16)
        floats = (_codes(q.numpy(), bits) - middle).astype(np.float32) * scale.numpy().astype(np.float32)[:, shared]
        return ir.tensor(np.ascontiguousarray(floats))

    table = lazy_weight(imp, f"{node.inputs[0].name}.float32", made, ir.DataType.FLOAT, (rows, width))
    name = f"{node.outputs[0].name}.float32"
    new = emit(node, "Gather", [table, node.inputs[1]], {"axis": 0}, name=node.name, outputs=[name])
    replace_uses(node.outputs[0], new.outputs[0])
    return True


def _codes(packed: np.ndarray, bits: int) -> np.ndarray:
    """int16 numbers of bytes that hold one or more."""
    return unpack_codes(packed, bits, packed.shape[1] * 8 // bits).astype(np.int16)
