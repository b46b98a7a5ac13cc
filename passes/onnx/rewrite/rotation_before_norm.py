"""Norms of query and key that follow the rotation (HunYuan): the rotation before them is proven and written, too.

    norm by head(rotated by the export)  ->  RMSNormalization(Reshape(RotaryEmbedding(rows), [0, 0, H, D]))

`norm_by_head` has brought the norms to [B, S, heads, head_dim]. A norm with a weight does not commute with a rotation,
so the order stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.dataflow import source_of
from passes.onnx.pass_context import Declined, Importing, add_initializer, emit
from passes.onnx.prove.prove_rope import Rope
from passes.onnx.prove.prove_rotation import prove_rotation
from passes.onnx.rewrite.write_attention import as_rows, rotate
from passes.onnx.shapes import Known, Point


def rotation_before_norm(
    imp: Importing,
    normed: list[Any],
    active: set[Any],
    known: dict[Any, Known],
    at: Point,
    heads: int,
    ropes: list[Rope | None],
) -> None:
    """Write the rotation before the norms whose results are the query and the key, if there is one.

    Raises:
        Declined: what is before the norms is no rotation by position, or also scales: a norm's epsilon would show it.
    """
    norms = [value.producer() for value in normed]
    if any(node is None or node.op_type != "RMSNormalization" for node in norms):
        return
    rotated = [node.inputs[0] for node in norms]
    sources = [source_of(value, active, known) for value in rotated]
    rope, factor = prove_rotation(imp, sources, rotated, known, at, heads, ropes, ("bshd",))
    if rope is None and factor == 1.0:
        return
    if rope is None or factor != 1.0:
        raise Declined(f"the query is multiplied by {factor:g} before its norm")
    for norm, source, count in zip(norms, sources, (heads, imp.facts.kv_heads), strict=True):
        rows = as_rows(norm, source, len(known[source].shape))
        turned = rotate(imp, norm, rows, count, rope)
        shape = add_initializer(
            imp.graph, f"{turned.name}.by_head", np.array([0, 0, count, imp.facts.head_dim], np.int64)
        )
        heads_of = emit(norm, "Reshape", [turned, shape], {"allowzero": 0}, outputs=[f"{turned.name}.heads"]).outputs[0]
        heads_of.type = ir.TensorType(ir.DataType.FLOAT)
        norm.replace_input_with(0, heads_of)
