"""Shapes of what operators make for which ONNX has no rule: onnxruntime's own, the canonical ones, attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import attribute

if TYPE_CHECKING:
    from passes.onnx.shapes import Known


def _same(node: Any, known: dict[Any, Known]) -> list[tuple[int, ...]]:
    return [known[node.inputs[0]].shape]


def _skip_norm(node: Any, known: dict[Any, Known]) -> list[tuple[int, ...]]:
    shape = known[node.inputs[0]].shape
    return [shape, shape[:-1], shape[:-1], shape]


def _matmul_nbits(node: Any, known: dict[Any, Known]) -> list[tuple[int, ...]]:
    shape = known[node.inputs[0]].shape
    return [(*shape[:-1], attribute(node, "N"))] if shape and shape[-1] == attribute(node, "K") else []


def fused_permutation(node: Any, side: str, rank: int) -> list[int]:
    """The permutation of operand "A" or "B" of a FusedMatMul that makes it one of MatMul."""
    perm = list(range(rank))
    batch, matrix = {"A": ("transBatchA", "transA"), "B": ("transBatchB", "transB")}[side]
    if attribute(node, batch, 0):  # the first dimension is the rows', the batch ones follow
        perm = [*perm[1:-1], perm[0], perm[-1]]
    if attribute(node, matrix, 0):
        perm[-2:] = perm[:-3:-1]
    return perm


def _fused_matmul(node: Any, known: dict[Any, Known]) -> list[tuple[int, ...]]:
    shapes = [known[v].shape for v in node.inputs[:2]]
    if any(len(s) < 2 for s in shapes):
        return []
    a, b = ([s[i] for i in fused_permutation(node, x, len(s))] for x, s in zip("AB", shapes, strict=True))
    if a[-1] != b[-2]:
        return []
    try:
        return [(*np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2])), a[-2], b[-1])]
    except ValueError:
        return []


def _norm(node: Any, known: dict[Any, Known]) -> list[tuple[int, ...]]:
    shape, weight = known[node.inputs[0]].shape, known[node.inputs[1]].shape
    return [shape] if shape and weight in ((), (1,), shape[-1:]) else []


def _causal_mask(node: Any, known: dict[Any, Known]) -> list[tuple[int, ...]]:
    (batch, new), past = known[node.inputs[1]].shape, known[node.inputs[2]].shape[2]
    return [(batch, 1, new, past + new)]


def _alibi(node: Any, known: dict[Any, Known]) -> list[tuple[int, ...]]:
    batch, _, new, total = known[node.inputs[0]].shape
    return [(batch, len(attribute(node, "slopes")), new, total)]


def _positions(node: Any, known: dict[Any, Known]) -> list[tuple[int, ...]]:
    return [known[node.inputs[1]].shape]


def _gather_quantized(node: Any, known: dict[Any, Known]) -> list[tuple[int, ...]]:
    data, indices, scales = (known[v] for v in node.inputs[:3])
    if not scales.shape:
        return []
    per_byte = 8 // attribute(node, "bits", 4) if data.dtype == int(ir.DataType.UINT8) else 1
    width = int(np.prod(data.shape[1:])) * per_byte
    return [(*indices.shape, min(width, scales.shape[-1] * attribute(node, "block_size", 128)))]


def _attention(node: Any, known: dict[Any, Known]) -> list[tuple[int, ...]]:
    """GroupQueryAttention and MultiHeadAttention: the output is as wide as q, less packed k and v."""
    q = known[node.inputs[0]].shape
    if node.op_type == "MultiHeadAttention":
        v = known[node.inputs[2]].shape
        if not q or len(v) not in (3, 4):
            return []
        return [(*q[:-1], v[-1] if len(v) == 3 else v[1] * v[3])]
    past = known[node.inputs[3]].shape
    if len(q) != 3 or len(past) != 4:
        return []
    heads, kv_heads = attribute(node, "num_heads"), attribute(node, "kv_num_heads")
    width = q[-1] if node.inputs[1] is not None else q[-1] * heads // (heads + 2 * kv_heads)
    present = (past[0], past[1], past[2] + q[1], past[3])
    return [(*q[:-1], width), present, present]


TYPED_LIKE = {"GatherBlockQuantized": 2, "CausalMask": 2, "Positions": 1}  # input with the type of the output
# operators ONNX has no rules for: the inputs that decide the shape, and the rule
SHAPE_RULES = {
    "CausalMask": ((1, 2), _causal_mask),
    "Alibi": ((0,), _alibi),
    "Positions": ((1,), _positions),
    "SimplifiedLayerNormalization": ((0, 1), _norm),
    "RMSNormalization": ((0, 1), _norm),
    "RotaryEmbedding": ((0,), _same),
    "SkipSimplifiedLayerNormalization": ((0,), _skip_norm),
    "SkipLayerNormalization": ((0,), _skip_norm),
    "FastGelu": ((0,), _same),
    "BiasGelu": ((0,), _same),
    "QuickGelu": ((0,), _same),
    "Gelu": ((0,), _same),
    "SquaredRelu": ((0,), _same),
    "XIELU": ((0,), _same),
    **dict.fromkeys(("AltUpPredict", "AltUpCorrect", "AltUpAdd", "MatchMagnitude", "GaussianTopK"), ((0,), _same)),
    "MatMulNBits": ((0,), _matmul_nbits),
    "MatMulBnb4": ((0,), _matmul_nbits),
    "FusedMatMul": ((0, 1), _fused_matmul),
    "GatherBlockQuantized": ((0, 1, 2), _gather_quantized),
    "GroupQueryAttention": ((0, 3), _attention),
    "MultiHeadAttention": ((0, 2), _attention),
}
