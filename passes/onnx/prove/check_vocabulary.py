"""The last pass: nothing but the canonical vocabulary is left, or the user hears which node, and why it stayed.

The opset becomes 23 here: every operator that is left means the same in all opsets since it exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from passes.onnx.label_parts import ROW_INPUTS
from passes.onnx.pass_context import Importing, PassLog, describe
from passes.onnx.prove.vocabulary import CHECKS
from passes.onnx.prove.weight_expression import initializer_of, is_weight
from passes.onnx.rewrite.sort_nodes import sort_nodes
from passes.onnx.shapes import known_shapes, points
from targets.errors import UserError

_KINDS = [  # operators that tell what kind of model it is, or who wrote it
    (
        {"QAttention"},
        " (attention itself was quantised: quantise with op_types_to_quantize=['MatMul', 'Gemm', 'Gather'])",
    ),
    (
        {"QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearSoftmax"},
        " (it computes with 8-bit numbers whose scale was fixed at export: quantise with quant_format=QuantFormat.QDQ)",
    ),
    (
        {
            "FusedMatMul",
            "FusedGemm",
            "BiasSoftmax",
            "EmbedLayerNormalization",
            "BiasDropout",
            "DecoderMaskedSelfAttention",
        },
        " (onnxruntime's optimiser wrote it: give the file before that, or save it at level basic, ORT_ENABLE_BASIC)",
    ),
    (
        {"TopK", "MoE", "QMoE"},
        " (it chooses experts, as mixtures of experts do: use a dense model)",
    ),
    (
        {"Conv", "LSTM", "GRU", "RNN", "Scan", "Loop", "Softplus", "CausalConvWithState", "LinearAttention"},
        " (it carries a state or convolves, as recurrent and hybrid models do: use an attention-only model)",
    ),
]

_WEIGHTS = {  # part of a weight's name -> what model it tells
    ".altup.": "it belongs to a Gemma 3n, and is written in a way that is not known: export it with dynamo=True",
    ".embed_tokens_per_layer.": "it belongs to a Gemma 3n, and is written in a way that is not known: export it with "
    "dynamo=True",
}


def check_vocabulary(imp: Importing) -> PassLog:
    """Check what is left and set the opsets.

    Raises:
        UserError: a node outside the vocabulary; the message names operator, node and reason.
    """
    sort_nodes(imp.graph)
    refused = list(refusals(imp))
    for node, reason in refused:  # what tells the kind of model says more than what was met first
        if tells_kind(node):
            raise UserError(f"{describe(node)}: {reason}")
    if refused and (reason := _told_by_a_weight(imp)):
        raise UserError(f"{describe(refused[0][0])}: {reason}")
    # rows stay flattened because of what is between them
    for node, reason in sorted(refused, key=lambda pair: pair[0].op_type == "Reshape"):
        raise UserError(_why(imp, node) or f"{describe(node)}: {reason}")
    opsets = imp.graph.opset_imports
    opsets[""] = 23
    _check_fit(imp)
    used = {node.domain for node in imp.graph}
    for domain in [d for d in opsets if d and d not in used]:
        del opsets[domain]
    for domain in used:  # onnxruntime does not insist that its own is imported
        opsets.setdefault(domain, 1)
    for function in imp.model.functions.values():
        function.opset_imports[""] = 23
    imp.model.ir_version = 10
    for value in imp.graph.outputs:
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    imp.graph.name = imp.graph.name or "decoder"
    return PassLog("check_vocabulary", len(imp.graph))


def _check_fit(imp: Importing) -> None:
    """The operands of every node fit together: their shapes can be inferred at concrete sizes."""
    known = known_shapes(imp, points(imp)[0])
    for node in imp.graph:
        inputs = [known[v].shape for v in node.inputs if v is not None and v in known]
        if not all(v in known for v in node.outputs if v.uses() or v.is_graph_output()):
            raise UserError(f"{describe(node)}: its operands do not fit together ({', '.join(map(str, inputs))})")
        if node.op_type in ("RMSNormalization", "LayerNormalization"):
            of_heads = node.op_type == "LayerNormalization" and known[node.inputs[1]].shape == inputs[0][2:]
            for value in node.inputs[1:3]:
                if known[value].shape != inputs[0][2 if of_heads else -1 :]:
                    raise UserError(
                        f"{describe(node)}: {value.name} {known[value].shape} is no number for each element"
                    )
        if node.op_type == "GatherBlockQuantized" and known[node.inputs[0]].shape[0] != _rows(node.inputs[0]):
            raise UserError(f"{describe(node)}: the rows of its weight are stored in another form")
    logits, ids = (known[v].shape for v in (imp.graph.outputs[0], imp.graph.inputs[0]))
    if imp.graph.outputs[0].name == "logits" and (len(logits) != 3 or logits[:2] != ids):
        raise UserError(f"the logits have the shape {logits} for tokens {ids}, not [batch, tokens, vocabulary]")


def _rows(value: Any) -> int:
    return int(initializer_of(value).const_value.shape[0])


def refusals(imp: Importing) -> Iterator[tuple[Any, str]]:
    """Every node outside the vocabulary with the reason, in the order of the graph."""
    for node in imp.graph:
        if reason := _refusal(node):
            yield node, reason


def tells_kind(node: Any) -> bool:
    """Whether the operator of a node that is left says by itself why the model is refused."""
    return any(node.op_type in operators for operators, _ in _KINDS)


def _told_by_a_weight(imp: Importing) -> str:
    """What model the name of a weight tells; empty if none does."""
    names = [str(name) for name in imp.graph.initializers]
    return next((reason for part, reason in _WEIGHTS.items() if any(part in f".{name}" for name in names)), "")


def _why(imp: Importing, node: Any) -> str:
    """What a pass said about this node, or else the first pattern that was not recognised and left it behind."""
    notes = [note for entry in imp.log for note in entry.notes if "(node " in note]
    own = [note for note in notes if note.startswith(describe(node) + ": ")]
    return (own or notes or [""])[0]


def _refusal(node: Any) -> str:
    """Why a node is outside the vocabulary; empty if it is inside."""
    check = CHECKS.get((node.domain, node.op_type))
    if check is None:
        kind = next((text for operators, text in _KINDS if node.op_type in operators), "")
        return f"the operator is not part of a decoder this compiler knows{kind}; COVERAGE.md lists what it knows"
    return check(node) or _without_rows(node)


def _without_rows(node: Any) -> str:
    """Why what a node reads as rows was not computed from the text; empty if it was.

    An Add or a Mul may have one weight, a bias or a factor.
    """
    if is_weight(node.outputs[0]):
        return ""
    given = [node.inputs[i] for i in ROW_INPUTS.get((node.domain, node.op_type), ())]
    weights = [value for value in given if value is not None and is_weight(value)]
    stated = [value for value in given if value is not None and value not in weights and value.is_graph_input()]
    if weights and (len(weights) == len(given) or node.op_type not in ("Add", "Mul")):
        return f"it reads {weights[0].name}, a weight, and no row of the text"
    return f"it reads {stated[0].name}, an input of the graph, and no row of the text" if stated else ""
