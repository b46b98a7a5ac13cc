"""Block-quantised matrix multiplications with activations left as they are: MatMulNBits accuracy_level -> 0.

Level 4 lets onnxruntime round the activations to int8 too. That is one runtime's speed setting, not the model.
"""

from __future__ import annotations

import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, attribute


def exact_quantised(imp: Importing) -> PassLog:
    """Set accuracy_level 0 wherever it is another."""
    matched = 0
    for node in imp.graph:
        if node.op_type == "MatMulNBits" and attribute(node, "accuracy_level", 0) != 0:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
            matched += 1
    return PassLog("exact_quantised", matched)
