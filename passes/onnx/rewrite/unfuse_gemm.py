"""FusedGemm(a, b, c){activation Relu}, which onnxruntime's optimiser saves at level "extended" -> Relu(Gemm(a, b, c)).

Before anything is quantised, so that a recipe finds its matrix.
"""

from __future__ import annotations

from passes.onnx.pass_context import Importing, PassLog, attribute, describe, emit, replace_uses


def unfuse_gemm(imp: Importing) -> PassLog:
    """Rewrite every such node that names an activation."""
    matched, notes = 0, []
    for node in list(imp.graph):
        if (node.domain, node.op_type) != ("com.microsoft", "FusedGemm"):
            continue
        if "activation" not in node.attributes:
            notes.append(f"{describe(node)}: it names no activation")
            continue
        y, kept = node.outputs[0], ("alpha", "beta", "transA", "transB")
        attributes = {key: attribute(node, key) for key in kept if key in node.attributes}
        gemm = emit(node, "Gemm", list(node.inputs), attributes, name=node.name, outputs=[f"{y.name}.gemm"]).outputs[0]
        gemm.type = y.type
        replace_uses(y, emit(node, "Relu", [gemm], outputs=[f"{y.name}.relu"]).outputs[0])
        matched += 1
    return PassLog("unfuse_gemm", matched, tuple(notes))
