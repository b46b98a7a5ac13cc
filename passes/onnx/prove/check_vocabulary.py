"""The last pass: nothing but the canonical vocabulary is left, or the user hears which node, and why it stayed.

The opset becomes 23 here: every operator that is left means the same in all opsets since it exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from passes.onnx.pass_context import WRITTEN, Importing, PassLog, attribute, constant, describe
from passes.onnx.rewrite.local_functions import DOMAIN
from passes.onnx.rewrite.sort_nodes import sort_nodes
from passes.onnx.shapes import known_shapes, points
from targets.errors import UserError

_SMALLEST_BLOCK = 16
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)  # bfloat16 was widened
_WEIGHT_OPERATORS = ("Cast", "Transpose", "Reshape")
_KINDS = [  # operators that tell what kind of model it is, or who wrote it
    (
        {"DynamicQuantizeLinear", "MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QLinearMatMul"},
        " (DynamicQuantizeLinear and MatMulInteger compute with 8-bit activations, as quantize_dynamic writes them: "
        "give the float32 file, or its weights alone quantised, as by onnxruntime's MatMulNBitsQuantizer)",
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
    for node, reason in refused:
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
            for value in node.inputs[1:3]:
                if known[value].shape != inputs[0][-1:]:
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


def is_weight(value: Any) -> bool:
    """Whether a value is an initialiser behind nothing but Cast, Transpose and Reshape."""
    while value is not None and value.producer() is not None:
        if value.producer().op_type not in _WEIGHT_OPERATORS:
            return False
        value = value.producer().inputs[0]
    return value is not None and value.const_value is not None


def initializer_of(value: Any) -> Any:
    """The initialiser behind a weight expression."""
    while value.producer() is not None:
        value = value.producer().inputs[0]
    return value


def stored(value: Any) -> Any:
    """The initialiser that a weight expression stores as it is or to be cast up to float32; None: it is rearranged."""
    while value is not None and value.producer() is not None:
        node = value.producer()
        if node.op_type != "Cast" or _weight_operator(node):
            return None
        value = node.inputs[0]
    return value if value is not None and value.const_value is not None else None


def _why(imp: Importing, node: Any) -> str:
    """What a pass said about this node, or else the first pattern that was not recognised and left it behind."""
    notes = [note for entry in imp.log for note in entry.notes if "(node " in note]
    own = [note for note in notes if note.startswith(describe(node) + ": ")]
    return (own or notes or [""])[0]


def _refusal(node: Any) -> str:
    """Why a node is outside the vocabulary; empty if it is inside."""
    check = _CHECKS.get((node.domain, node.op_type))
    if check is None:
        kind = next((text for operators, text in _KINDS if node.op_type in operators), "")
        return f"the operator is not part of a decoder this compiler knows{kind}; COVERAGE.md lists what it knows"
    return check(node)


def _weight_operator(node: Any) -> str:
    if not is_weight(node.outputs[0]):
        return "it is applied to a computed value, not to a weight"
    dtype = initializer_of(node.inputs[0]).const_value.dtype
    if node.op_type == "Cast" and (attribute(node, "to") != ir.DataType.FLOAT or not dtype.is_floating_point()):
        return f"it makes a weight of {dtype.name} another one than float32"
    return ""


def _gather(node: Any) -> str:
    if attribute(node, "axis", 0) or not is_weight(node.inputs[0]):
        return "only the embedding, a Gather of a weight by input_ids, is supported"
    indices, maker = node.inputs[1], node.inputs[1].producer()
    positions = indices.name == "position_ids" or (maker is not None and maker.op_type == "Positions")
    if indices.name != "input_ids" and not positions:
        return "only rows chosen by input_ids or by position are supported"
    return _matrix(node.inputs[0])


def _matmul(node: Any) -> str:
    if is_weight(node.inputs[1]) and not is_weight(node.inputs[0]):
        return _matrix(node.inputs[1])
    return "only matrix multiplications of a computed value with a weight are supported"


def _nbits(node: Any) -> str:
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        return "g_idx (act-order quantisation) is not supported"
    bits, block, k, n = (attribute(node, name, 4) for name in ("bits", "block_size", "K", "N"))
    if bits not in (4, 8):
        return f"{bits} bits are not supported"
    if block < _SMALLEST_BLOCK or block & (block - 1):
        return f"blocks of {block} are not a power of two from {_SMALLEST_BLOCK} on"
    blocks = -(-k // block)
    packed, zeros = (ir.DataType.UINT8,), n * -(-blocks * bits // 8)
    if len(node.inputs) > 3 and is_weight(node.inputs[3]) and _tensor(node.inputs[3]).dtype in _FLOATS:
        if bits != 4:
            return f"zero points that are fractions with {bits} bits: onnxruntime has them with 4 bits only"
        zeros = n * blocks  # as HQQ writes them, one for each scale
    sizes = [n * blocks * (block * bits // 8), n * blocks, zeros, None, n]
    for value, size, types in zip(
        node.inputs[1:], sizes, (packed, _FLOATS, (*packed, *_FLOATS), (), _FLOATS), strict=False
    ):
        if value is not None and (reason := _stored(value, size, types)):
            return reason
    return ""


def _tensor(value: Any) -> Any:
    return initializer_of(value).const_value


def _stored(value: Any, size: int, types: tuple[Any, ...]) -> str:
    """Why a value is no weight of that many numbers of one of those types; empty if it is."""
    if not is_weight(value):
        return f"{value.name} is computed, not a weight"
    if _transposed(value):
        return f"{value.name} is stored in another form"
    if _tensor(value).dtype not in types:
        return f"{value.name} is of type {_tensor(value).dtype.name}; {', '.join(t.name for t in types)} is supported"
    if _tensor(value).size != size:
        return f"{value.name} has {_tensor(value).size} numbers, K, N and block_size need {size}"
    return ""


def _gather_quantized(node: Any) -> str:
    strange = next((v.name for v in (node.inputs[0], *node.inputs[2:]) if v is not None and not is_weight(v)), None)
    if strange is not None or node.inputs[1].name != "input_ids":
        return f"only rows of a weight by input_ids are supported ({strange or node.inputs[1].name} is computed)"
    if any(v is not None and _transposed(v) for v in (node.inputs[0], *node.inputs[2:])):
        return "its weight is stored in another form"
    data, scales = (initializer_of(node.inputs[i]).const_value for i in (0, 2))
    if len(data.shape) < 2 or len(scales.shape) != 2 or data.shape[0] != scales.shape[0] or not data.size:
        return f"a weight {list(data.shape)} with scales {list(scales.shape)}"
    bits, block = attribute(node, "bits", 4), attribute(node, "block_size", 128)
    if bits not in (4, 8):
        return f"{bits} bits are not supported"
    if data.dtype != ir.DataType.UINT8:
        return f"its weight is of type {data.dtype.name}; UINT8, INT4 and UINT4 are supported"
    blocks = -(-(int(data.size) // int(data.shape[0])) * 8 // bits // block)
    if int(scales.shape[1]) != blocks:
        return f"{scales.shape[1]} scales a row, width and block_size need {blocks}"
    zeros = int(data.shape[0]) * -(-blocks * bits // 8)
    return _stored(node.inputs[3], zeros, (ir.DataType.UINT8,)) if len(node.inputs) > 3 and node.inputs[3] else ""


def _transposed(value: Any) -> bool:
    while value.producer() is not None:
        if value.producer().op_type == "Transpose":
            return True
        value = value.producer().inputs[0]
    return False


def _norm(node: Any) -> str:
    if attribute(node, "axis", -1) != -1 or attribute(node, "stash_type", 1) != 1:
        return "only a norm of the last axis in float32 is supported"
    return "" if stored(node.inputs[1]) is not None else "the scale is no weight"


def _matrix(value: Any) -> str:
    """Why a weight expression is no matrix that is stored as it is or transposed."""
    while value.producer() is not None:
        node = value.producer()
        if node.op_type == "Reshape" or attribute(node, "perm", (1, 0)) not in ((1, 0), [1, 0]):
            return f"its weight is stored in another form ({describe(node)})"
        value = node.inputs[0]
    shape = [int(d) for d in value.const_value.shape]
    return "" if len(shape) == 2 and min(shape) > 0 else f"the weight {value.name} {shape} is no matrix"


def _layer_norm(node: Any) -> str:
    if any(o.uses() for o in node.outputs[1:]):
        return "only a norm whose mean is not used is supported"
    if len(node.inputs) < 3 or stored(node.inputs[2]) is None or _norm(node):
        return _norm(node) or "the scale and the bias are not both weights"
    return ""


def _split(node: Any) -> str:
    if attribute(node, "axis", 0) not in (-1, 2) or len(node.inputs) < 2 or constant(node.inputs[1]) is None:
        return "only a Split of the last axis into given sizes is supported"
    if "num_outputs" in node.attributes:
        return "it has both sizes and num_outputs"
    return ""


def _reshape(node: Any) -> str:
    if is_weight(node.outputs[0]):
        return ""
    shape = constant(node.inputs[1])
    if attribute(node, "allowzero", 0):
        return "allowzero=1 is not supported"
    if shape is None or shape.shape not in ((3,), (4,)) or shape[:2].tolist() != [0, 0]:
        return "only [batch, new, heads * dim] seen by head and back is supported"
    users = {n.op_type for n, _ in node.outputs[0].uses()}
    if len(shape) == 4 and users != {"RMSNormalization"}:
        return f"a view by head is only supported before a norm, not before {', '.join(sorted(users))}"
    return ""


def _add(node: Any) -> str:
    weights = [v for v in node.inputs if is_weight(v)]
    bias = stored(weights[0]) if len(weights) == 1 else None
    if not weights or (bias is not None and len(bias.const_value.shape) == 1):
        return ""
    return "only a bias vector or another computed value can be added"


def _mul(node: Any) -> str:
    weights = [v for v in node.inputs if is_weight(v)]
    if any(v.producer() is not None or v.const_value.size != 1 for v in weights) or len(weights) > 1:
        return "a computed value is multiplied by a weight vector, which is not supported outside a norm"
    return ""


def _sigmoid(node: Any) -> str:
    users = [user for user, _ in node.outputs[0].uses()]
    if all(user.op_type == "Mul" and node.inputs[0] in user.inputs for user in users):
        return ""
    return "it is not the gate of SiLU, x * Sigmoid(x)"


def _accept(node: Any) -> str:
    return ""


def _written_here(node: Any) -> str:
    """An operator that has more to say than is translated: only nodes that a pass wrote are what they seem."""
    return "" if WRITTEN in node.meta else "it was not recognised as part of an attention with a cache"


_CHECKS = {
    ("", "Cast"): _weight_operator,
    ("", "Transpose"): _weight_operator,
    ("", "Reshape"): _reshape,
    ("", "Gather"): _gather,
    ("com.microsoft", "GatherBlockQuantized"): _gather_quantized,
    ("com.microsoft", "MatMulNBits"): _nbits,
    ("", "MatMul"): _matmul,
    ("", "Add"): _add,
    ("", "Mul"): _mul,
    ("", "Sigmoid"): _sigmoid,
    ("", "RMSNormalization"): _norm,
    ("", "LayerNormalization"): _layer_norm,
    ("", "Gelu"): _accept,
    ("", "Tanh"): _accept,
    ("", "Split"): _split,
    ("", "RotaryEmbedding"): _written_here,
    ("", "Attention"): _written_here,
    (DOMAIN, "Gelu"): _accept,
    (DOMAIN, "CausalMask"): _accept,
    (DOMAIN, "Positions"): _accept,
}
