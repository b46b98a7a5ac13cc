"""The canonical vocabulary: its operators, and for each of them what a node must be."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from passes.onnx.pass_context import WRITTEN, attribute, constant, describe, scalar
from passes.onnx.prove.gate import gate_of, is_gate_alone, sigmoid_of_silu
from passes.onnx.prove.weight_expression import initializer_of, is_weight, stored, weight_operator
from passes.onnx.rewrite.local_functions import DOMAIN
from passes.packed_codes import BITS

_SMALLEST_BLOCK = 16
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)  # bfloat16 was widened


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
    if bits not in BITS:
        return f"{bits} bits are not supported"
    if block < _SMALLEST_BLOCK or block & (block - 1):
        return f"blocks of {block} are not a power of two from {_SMALLEST_BLOCK} on"
    blocks = -(-k // block)
    packed, zeros = (ir.DataType.UINT8,), n * -(-blocks * bits // 8)
    if len(node.inputs) > 3 and is_weight(node.inputs[3]) and _tensor(node.inputs[3]).dtype in _FLOATS:
        if bits == 8:
            return "zero points that are fractions with 8 bits: onnxruntime has them with 2 and 4 bits only"
        zeros = n * blocks  # as HQQ writes them, one for each scale
    sizes = [n * blocks * (block * bits // 8), n * blocks, zeros, None, n]
    for value, size, types in zip(
        node.inputs[1:], sizes, (packed, _FLOATS, (*packed, *_FLOATS), (), _FLOATS), strict=False
    ):
        if value is not None and (reason := _stored(value, size, types)):
            return reason
    return ""


def _bnb4(node: Any) -> str:
    block, k, n = (attribute(node, name) for name in ("block_size", "K", "N"))
    if block < _SMALLEST_BLOCK or block & (block - 1) or k % block:
        return f"blocks of {block} codes of columns of {k}: K has to be a multiple of {_SMALLEST_BLOCK}"
    sizes = ((node.inputs[1], n * k // 2, (ir.DataType.UINT8,)), (node.inputs[2], n * k // block, _FLOATS))
    return next((reason for stated in sizes if (reason := _stored(*stated))), "")


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
    if bits not in BITS:
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


def _concat(node: Any) -> str:
    if attribute(node, "axis") != -1 or len(node.inputs) != 2:
        return "only two computed rows can stand beside one another"
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
    if len(shape) == 4 and not users <= {"RMSNormalization", "LayerNormalization"}:
        return f"a view by head is only supported before a norm, not before {', '.join(sorted(users))}"
    return ""


def _add(node: Any) -> str:
    weights = [v for v in node.inputs if is_weight(v)]
    bias = stored(weights[0]) if len(weights) == 1 else None
    if not weights or (bias is not None and len(bias.const_value.shape) == 1 and bias.const_value.size > 1):
        return ""
    return "only a bias vector or another computed value can be added"


def _mul(node: Any) -> str:
    weights = [v for v in node.inputs if is_weight(v)]
    if len(weights) == 1 and weights[0].producer() is None and len(weights[0].const_value.shape) == 1:
        return ""
    if any(v.producer() is not None or v.const_value.size != 1 for v in weights) or len(weights) > 1:
        return "a computed value is multiplied by a weight matrix number by number, which has no kernel"
    if weights or gate_of(node) is not None:
        return ""
    if sigmoid_of_silu(node) is None:
        return "two computed values are multiplied and neither is a gate, which has no kernel"
    return "" if is_gate_alone(node) else "a SiLU that is no gate of a feed-forward part has no kernel"


def _sigmoid(node: Any) -> str:
    if all(sigmoid_of_silu(user) is node for user, _ in node.outputs[0].uses()):
        return ""
    return "it is not the gate of SiLU, x * Sigmoid(x)"


def _clip(node: Any) -> str:
    given = [scalar(value) for value in (*node.inputs[1:3], None, None)[:2] if value is not None]
    return "" if len(given) == 2 and None not in given else "only a Clip between two constants is supported"


def _accept(node: Any) -> str:
    return ""


def _written_here(node: Any) -> str:
    """An operator that has more to say than is translated: only nodes that a pass wrote are what they seem."""
    return "" if WRITTEN in node.meta else "it was not recognised as part of an attention with a cache"


# (domain, operator) -> why a node of it is outside the vocabulary; empty if it is inside
CHECKS = {
    ("", "Cast"): weight_operator,
    ("", "Transpose"): weight_operator,
    ("", "Reshape"): _reshape,
    ("", "Gather"): _gather,
    ("com.microsoft", "GatherBlockQuantized"): _gather_quantized,
    ("com.microsoft", "MatMulNBits"): _nbits,
    ("com.microsoft", "MatMulBnb4"): _bnb4,
    ("", "MatMul"): _matmul,
    ("", "Add"): _add,
    ("", "Mul"): _mul,
    ("", "Sigmoid"): _sigmoid,
    ("", "RMSNormalization"): _norm,
    ("", "LayerNormalization"): _layer_norm,
    ("", "Gelu"): _accept,
    ("", "Relu"): _accept,
    ("", "Tanh"): _accept,
    ("", "Clip"): _clip,
    ("", "Split"): _split,
    ("", "RotaryEmbedding"): _written_here,
    ("", "Attention"): _written_here,
    (DOMAIN, "Gelu"): _accept,
    (DOMAIN, "SquaredRelu"): _accept,
    (DOMAIN, "XIELU"): _accept,
    ("", "Concat"): _concat,
    **{(DOMAIN, name): _accept for name in ("AltUpPredict", "AltUpCorrect", "AltUpAdd")},
    (DOMAIN, "MatchMagnitude"): _accept,
    (DOMAIN, "GaussianTopK"): _accept,
    (DOMAIN, "CausalMask"): _accept,
    (DOMAIN, "Alibi"): _accept,
    (DOMAIN, "Positions"): _accept,
}
