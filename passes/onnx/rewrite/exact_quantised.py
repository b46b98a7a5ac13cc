"""Block-quantised matrix multiplications with activations left as they are: MatMulNBits accuracy_level -> 0.

Level 4 lets a runtime round the activations to int8; lower_dequantize writes it where the file itself rounds
activations to 8 bits (float_activations). In the graph they stay as they are; that the file allows it stands in the
facts, and lowering decides (passes/relax/quantise_activations.py).
"""

from __future__ import annotations

import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, attribute

_INT8 = 4


def exact_quantised(imp: Importing) -> PassLog:
    """Set accuracy_level 0 wherever it is another."""
    matched, nodes = 0, [node for node in imp.graph if node.op_type == "MatMulNBits"]
    imp.facts.int8_activations = bool(nodes) and all(attribute(n, "accuracy_level", 0) == _INT8 for n in nodes)
    for node in nodes:
        if attribute(node, "accuracy_level", 0) != 0:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
            matched += 1
    return PassLog("exact_quantised", matched)
