"""Rows of a quantised table that are longer than the model is wide -> a table of that width.

    Slice(GatherBlockQuantized(q [V, blocks * block], ids, scale [V, blocks]), 0, W)  ->  GatherBlockQuantized(q', ..)

The builder's table is the head's matrix, whose last block is filled up where the width is no multiple of the block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Declined, Importing, PassLog, attribute, constant, describe, replace_uses
from passes.onnx.prove.weight_expression import initializer_of, is_weight
from passes.onnx.rewrite.quantise_weights import lazy_weight
from passes.onnx.weight_sizes import table_size

_BEGINNING = ([0], [1])  # starts and steps


def unpadded_table(imp: Importing) -> PassLog:
    """Rewrite every such Slice; others stay, with the reason in the log."""
    matched, notes = 0, []
    for node in list(imp.graph):
        maker = node.inputs[0].producer() if node.op_type == "Slice" and not node.domain else None
        if maker is not None and maker.op_type == "GatherBlockQuantized":
            try:
                _cut(imp, node, maker)
                matched += 1
            except Declined as reason:
                notes.append(f"{describe(node)}: {reason}")
    return PassLog("unpadded_table", matched, tuple(notes))


def _cut(imp: Importing, node: Any, rows: Any) -> None:
    starts, ends, axes, *steps = (None if v is None else constant(v) for v in node.inputs[1:])
    stated = [None if x is None else x.tolist() for x in (starts, *(steps or [np.ones(1)]))]
    if stated != list(_BEGINNING) or ends is None or axes is None or axes.tolist() not in ([-1], [2]):
        raise Declined("it takes other elements of a quantised table's rows than the first ones")
    if len(rows.outputs[0].uses()) != 1 or not is_weight(rows.inputs[0]) or len(rows.inputs[1].shape or ()) != 2:
        raise Declined("what it cuts is not a row of a stored table for each token of input_ids")
    (width,), table = ends.tolist(), initializer_of(rows.inputs[0])
    bits, block = attribute(rows, "bits", 4), attribute(rows, "block_size", 128)
    vocab, padded = table_size(rows)
    if table.const_value.dtype != ir.DataType.UINT8 or not padded - block < width <= padded or width * bits % 8:
        raise Declined(f"{width} of {padded} elements are not all blocks but the end of the last one")
    size = width * bits // 8

    def cut() -> Any:
        return ir.tensor(np.ascontiguousarray(table.const_value.numpy().reshape(vocab, -1)[:, :size]))

    rows.replace_input_with(0, lazy_weight(imp, f"{table.name}.unpadded", cut, ir.DataType.UINT8, (vocab, size)))
    replace_uses(node.outputs[0], rows.outputs[0])
