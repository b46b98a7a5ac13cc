"""Activations rounded with a scale fixed at export, as onnxruntime's quantize_static writes it (QDQ) -> as they were.

    DequantizeLinear(QuantizeLinear(x, s, z), s, z)  ->  x

Weights stay as they are stored: DequantizeLinear(w, s, z) is left to lower_dequantize. As with dynamic rounding
(float_activations) the graph keeps floats, and where all such rounding is to 8 bits the file allows int8 activations:
compiled, they are rounded row by row with scales of their own, which lose less than one scale for all texts does. The
reference of `hetero-sd verify` runs this pass, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Declined, Importing, PassLog, attribute, describe, replace_uses
from passes.onnx.prove.weight_expression import is_weight, stored

_MICROSOFT = "com.microsoft"
_OPERATORS = ("QuantizeLinear", "DequantizeLinear")
_BITS = {ir.DataType.INT8: 8, ir.DataType.UINT8: 8, ir.DataType.INT16: 16, ir.DataType.UINT16: 16}


def drop_fake_quantisation(imp: Importing) -> PassLog:
    """Take out every such pair; others stay, with the reason in the log."""
    bits, matched, notes = set[int](), 0, []
    for node in imp.graph:
        if node.domain == _MICROSOFT and node.op_type in _OPERATORS:  # the same, for opsets without 16 and 4 bits
            node.domain = ""
    for node in [n for n in imp.graph if not n.domain and n.op_type == "DequantizeLinear"]:
        maker = node.inputs[0].producer()
        imp.facts.rounded_constants |= _rounded_constant(node)
        if maker is None or maker.op_type != "QuantizeLinear" or _rounded_constant(node):
            continue
        try:
            bits.add(_same_scale(maker, node))
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
            continue
        replace_uses(node.outputs[0], maker.inputs[0])
        matched += 1
    imp.facts.int8_activations |= bits == {8}
    return PassLog("drop_fake_quantisation", matched, tuple(notes))


def _rounded_constant(node: Any) -> bool:
    """Whether a DequantizeLinear makes numbers or a vector of 8-bit ones, stored so or rounded in the graph.

    fold_constants computes them; of an epsilon or the frequencies of a rotation little may be left.
    """
    maker = node.inputs[0].producer()
    value = stored(node.inputs[0] if maker is None or maker.op_type != "QuantizeLinear" else maker.inputs[0])
    return value is not None and len(value.const_value.shape) <= 1 and value.const_value.dtype != ir.DataType.INT32


def _same_scale(rounds: Any, back: Any) -> int:
    """Bits of the numbers between the two nodes."""
    if is_weight(rounds.inputs[0]):
        raise Declined("a weight is rounded in the graph; store it rounded, as add_qdq_pair_to_weight=False does")
    if any(attribute(node, "block_size", 0) for node in (rounds, back)):
        raise Declined("activations are rounded in blocks")
    if attribute(back, "output_dtype", 0) not in (0, ir.DataType.FLOAT):
        raise Declined(f"output_dtype={attribute(back, 'output_dtype')} is not supported")
    for place in (1, 2):
        ours, theirs = (node.inputs[place] if len(node.inputs) > place else None for node in (rounds, back))
        if not _equal(ours, theirs):
            raise Declined("activations are rounded with one scale or zero point and scaled back with another")
    if stored(back.inputs[1]).const_value.size != 1 and attribute(rounds, "axis", 1) != attribute(back, "axis", 1):
        raise Declined("activations are rounded along one axis and scaled back along another")
    zero = rounds.inputs[2] if len(rounds.inputs) > 2 else None
    dtype = stored(zero).const_value.dtype if zero is not None else attribute(rounds, "output_dtype", 0)
    dtype = ir.DataType(dtype or ir.DataType.UINT8)
    if dtype not in _BITS:
        raise Declined(f"activations rounded to {dtype.name}; 8 and 16 bits are supported")
    return _BITS[dtype]


def _equal(ours: Any, theirs: Any) -> bool:
    if ours is theirs:
        return ours is None or stored(ours) is not None
    values = [stored(v) for v in (ours, theirs) if v is not None]
    tensors = [v.const_value for v in values if v is not None]
    if len(tensors) != 2:
        return False
    return tensors[0].dtype == tensors[1].dtype and np.array_equal(tensors[0].numpy(), tensors[1].numpy())
