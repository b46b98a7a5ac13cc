"""Rows of a position table (GPT-2, OPT) -> Gather(table, position_ids), or the Positions function where there is none.

The indices are run on numbers: they must be position_ids, or past + 0, 1, ..., or the count of real tokens before, each
plus the same number: OPT's first position is row 2, and the rows before it are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from passes.onnx.pass_context import Declined, Importing, PassLog, attribute, describe
from passes.onnx.prove.context_limit import limit_context
from passes.onnx.prove.run_subgraph import Piece, default_input, spread
from passes.onnx.prove.weight_expression import stored
from passes.onnx.rewrite.derived_weight import derived_weight
from passes.onnx.rewrite.write_attention import positions_value
from passes.onnx.shapes import Point
from targets.errors import UserError

_LONGEST = 4096  # positions looked at one by one


def learned_positions(imp: Importing) -> PassLog:
    """Rewrite every Gather of a weight's rows by anything but input_ids.

    Raises:
        UserError: the table has fewer rows than the context.
    """
    matched, notes = 0, []
    for node in list(imp.graph):
        if node.domain or node.op_type != "Gather" or attribute(node, "axis", 0) or stored(node.inputs[0]) is None:
            continue
        table = stored(node.inputs[0]).const_value
        if node.inputs[1].name == "input_ids" or len(table.shape) != 2 or table.dtype.is_integer():
            continue
        try:
            kind, first = _prove(imp, node.inputs[1])
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
            continue
        rows = int(table.shape[0]) - first
        if rows < imp.context:
            limit_context(imp, rows)
            raise UserError(
                f"{describe(node)}: the model has {rows} learned positions, the context is {imp.context}; "
                f"compile with --context {rows} or less"
            )
        if first:
            derived_weight(imp, node, 0, f"from{first}", _from_row(first), (rows, int(table.shape[1])))
        node.replace_input_with(1, positions_value(imp, node, kind))
        matched += 1
    return PassLog("learned_positions", matched, tuple(notes))


def _from_row(first: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda numbers: numbers[first:]


def _prove(imp: Importing, indices: Any) -> tuple[str, int]:
    """Which positions the indices are, "input", "mask" or "past", and the index of the first one."""
    piece = Piece(imp, [], indices)
    batch, context = imp.facts.batch or 2, imp.context
    longest, first = min(context, _LONGEST), None
    for new, past in ((2, 0), (1, min(3, context - 1)), (longest, 0), (1, context - 1)):
        if imp.facts.no_cache and past:
            continue
        at = Point(batch, new, past)
        inputs, expected = _case(imp, piece, at)
        more = spread(piece.run(at, None, **inputs), expected.shape) - expected
        if "attention_mask" in inputs:  # what stands where nothing is read does not matter
            more = more[inputs["attention_mask"][:, at.past :] == 1]
        first = int(more.flat[0]) if first is None else first
        if first < 0 or (more != first).any():
            raise Declined("the rows of the table are not chosen by position")
    assert first is not None
    if "position_ids" in piece.uses:
        return "input", first
    return "mask" if "attention_mask" in piece.uses else "past", first


def _case(imp: Importing, piece: Piece, at: Point) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs whose positions are no plain count where the graph has them, and the expected indices."""
    plain = np.broadcast_to(np.arange(at.past, at.past + at.new), (at.batch, at.new))
    if "position_ids" in piece.uses:
        positions = np.array(plain[:, ::-1], np.int64)
        return {"position_ids": positions}, positions
    if "attention_mask" not in piece.uses:
        return {}, plain
    mask = np.array(default_input(imp, "attention_mask", at))
    mask[0, :1] = 0
    return {"attention_mask": mask}, np.maximum(mask.cumsum(1) - 1, 0)[:, at.past :]
