"""Canonical ONNX decoder -> one Relax function in the decoder dialect.

    main(input_ids[1, n], past_key_values.0.key[1, kv_heads, p, head_dim], ..., weights...)
      -> (logits[1, n, vocab], present.0.key[1, kv_heads, p + n, head_dim], ...)

n (new tokens) and p (past length) are symbolic, the batch is 1, positions are p, p + 1, ... Weights are parameters
named as in the ONNX file and are never loaded here: `RelaxDecoder.weights` holds the lazy tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, tirx

from passes.onnx import Decoder, DecoderFacts
from passes.onnx.label_parts import computed_nodes
from passes.onnx.pass_context import describe, scalar
from passes.onnx.prove.weight_expression import initializer_of, is_weight
from passes.onnx.rewrite.blocks_of_columns import BNB4_TABLES
from passes.onnx.rewrite.local_functions import DOMAIN
from passes.onnx.rewrite.write_attention import seen_keys
from passes.relax import dialect as D
from passes.relax.emitter import Emitter, Value
from targets.errors import UserError


@dataclass(frozen=True)
class RelaxDecoder:
    """A decoder as a Relax module.

    Attributes:
        mod: the module of `main`.
        facts: what the decoder is.
        weights: lazy `onnx_ir` tensors by parameter name.
        origins: the ONNX node that each binding of `main` comes from, in order, without the tuple of the outputs.
    """

    mod: Any
    facts: DecoderFacts
    weights: dict[str, Any]
    origins: tuple[Any, ...]


def _attr(node: Any, name: str, default: Any = None) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _gather(e: Emitter, node: Any) -> Value:
    w, transposed = e.weight(node.inputs[0])
    if node.inputs[1].name != "input_ids":  # positions, which are past, past + 1, ... here
        ids = e.values["input_ids"].expr
        return Value(e.emit(D.learned_positions(w, ids, relax.prim_value(e.past))))
    rows, columns = (int(d) for d in D.shape_of(w))
    vocab, width = (columns, rows) if transposed else (rows, columns)
    layout = "KN" if transposed else "NK"
    return Value(e.emit(D.embedding(w, e.expr(node.inputs[1]), layout=layout, vocab=vocab, width=width)))


def _zero_point(e: Emitter, node: Any, i: int) -> tuple[Any, int]:
    """The zero-point parameter of a quantised node, or a one-element stand-in where the format implies it."""
    if len(node.inputs) > i and node.inputs[i] is not None:
        return e.weight(node.inputs[i])[0], 1
    return relax.const(np.zeros((1, 1, 1), np.uint8)), 0


def _embedding_nbits(e: Emitter, node: Any) -> Value:
    q, scale = e.weight(node.inputs[0])[0], e.weight(node.inputs[2])[0]
    zero, zeros = _zero_point(e, node, 3)
    bits, block = _attr(node, "bits", 4), _attr(node, "block_size", 128)
    vocab = int(D.shape_of(q)[0])
    width = int(np.prod([int(d) for d in D.shape_of(q)[1:]])) * 8 // bits
    return Value(
        e.emit(
            D.embedding_nbits(
                *(q, scale, zero, e.expr(node.inputs[1])),
                layout="NK",
                **dict(bits=bits, block=block, zeros=zeros, vocab=vocab, width=width),
            )
        )
    )


def _matmul(e: Emitter, node: Any) -> Value:
    w, transposed = e.weight(node.inputs[1])
    rows, columns = (int(d) for d in D.shape_of(w))
    layout, columns = ("NK", rows) if transposed else ("KN", columns)
    return Value(e.emit(D.linear(e.expr(node.inputs[0]), w, layout=layout, columns=columns)))


def _matmul_nbits(e: Emitter, node: Any) -> Value:
    q, scale = e.weight(node.inputs[1])[0], e.weight(node.inputs[2])[0]
    zero, zeros = _zero_point(e, node, 3)
    sizes = dict(
        bits=_attr(node, "bits", 4),
        block=_attr(node, "block_size"),
        zeros=zeros,
        columns=_attr(node, "N"),
        k=_attr(node, "K"),
    )
    y = e.emit(D.linear_nbits(e.expr(node.inputs[0]), q, scale, zero, layout="NK", **sizes))
    if len(node.inputs) > 5 and node.inputs[5] is not None:
        y = e.emit(relax.op.add(y, e.weight(node.inputs[5])[0]))
    return Value(y)


def _matmul_bnb4(e: Emitter, node: Any) -> Value:
    q, scale = (e.weight(v)[0] for v in node.inputs[1:3])
    sizes = dict(block=_attr(node, "block_size"), columns=_attr(node, "N"), k=_attr(node, "K"))
    table = BNB4_TABLES[_attr(node, "quant_type")]
    none = relax.const(np.zeros((1, 1, 1), np.uint8))
    call = D.linear_nbits(e.expr(node.inputs[0]), q, scale, none, layout="NK", bits=4, zeros=0, table=table, **sizes)
    return Value(e.emit(call))


def _add(e: Emitter, node: Any) -> Value:
    a, b = node.inputs
    if a.name not in e.values:
        a, b = b, a
    other = e.expr(b) if b.name in e.values else e.weight(b)[0]
    return Value(e.emit(relax.op.add(e.expr(a), other)))


def _multiply(e: Emitter, node: Any) -> Value:
    for value, other in (node.inputs, node.inputs[::-1]):
        if is_weight(other) and len(initializer_of(other).const_value.shape) == 1 and other.const_value.size > 1:
            return Value(e.emit(D.scale_columns(e.expr(value), e.weight(other)[0])))
        if is_weight(other):
            factor = float(other.const_value.numpy().reshape(-1)[0])
            return Value(e.emit(D.scale(e.expr(value), factor=factor)))
    return Value(e.emit(relax.op.multiply(*(e.expr(i) for i in node.inputs))))


def _sigmoid(e: Emitter, node: Any) -> Value:
    return Value(e.emit(relax.op.sigmoid(e.expr(node.inputs[0]))))


def _gelu(e: Emitter, node: Any) -> Value:
    if node.domain:  # the function of the canonical form, whose constants are those of the export
        constants = {name: _attr(node, name) for name in ("slope", "cubic")}
        return Value(e.emit(D.gelu(e.expr(node.inputs[0]), tanh=1, **constants)))
    return Value(e.emit(D.gelu(e.expr(node.inputs[0]), tanh=int(_attr(node, "approximate", "none") == "tanh"))))


def _relu(e: Emitter, node: Any) -> Value:
    return Value(e.emit((D.squared_relu if node.domain else D.relu)(e.expr(node.inputs[0]))))


def _clip(e: Emitter, node: Any) -> Value:
    least, most = (scalar(value) for value in node.inputs[1:3])  # check_vocabulary has seen them
    return Value(e.emit(D.clip(e.expr(node.inputs[0]), least=least, most=most)))


def _xielu(e: Emitter, node: Any) -> Value:
    constants = {name: _attr(node, name) for name in ("positive", "negative", "beta")}
    return Value(e.emit(D.xielu(e.expr(node.inputs[0]), **constants)))


def _tanh(e: Emitter, node: Any) -> Value:
    return Value(e.emit(D.tanh(e.expr(node.inputs[0]))))


def _layer_norm(e: Emitter, node: Any) -> Value:
    x = e.values[node.inputs[0].name]
    w, b = (e.vector(v) for v in node.inputs[1:3])
    own = len(initializer_of(node.inputs[1]).const_value.shape) == 2
    call = D.layer_norm(x.expr, w, b, groups=x.groups, own=int(own), eps=_attr(node, "epsilon", 1e-5))
    return Value(e.emit(call), x.groups)


def _rms_norm(e: Emitter, node: Any) -> Value:
    x = e.values[node.inputs[0].name]
    w, _ = e.weight(node.inputs[1])
    call = D.rms_norm(x.expr, w, groups=x.groups, eps=_attr(node, "epsilon", 1e-5))
    return Value(e.emit(call), x.groups)


def _reshape(e: Emitter, node: Any) -> Value:
    """[1, n, heads * dim] <-> [1, n, heads, dim] changes only how a row is seen."""
    x = e.values[node.inputs[0].name]
    shape = [int(d) for d in node.inputs[1].const_value.numpy()]
    return Value(x.expr, shape[2] if len(shape) == 4 else 1)


def _rope(e: Emitter, node: Any) -> Value:
    x = e.expr(node.inputs[0])
    cos, sin = e.weight(node.inputs[1])[0], e.weight(node.inputs[2])[0]
    attrs = dict(
        heads=_attr(node, "num_heads"),
        rotary_dim=2 * int(D.shape_of(cos)[1]),
        interleaved=_attr(node, "interleaved", 0),
    )
    return Value(e.emit(D.rope(x, cos, sin, relax.prim_value(e.past), **attrs)))


def _attention(e: Emitter, node: Any) -> tuple[Value, ...]:
    q, k, v, _, past_k, past_v = node.inputs[:6]
    window, slopes = seen_keys(node)
    attrs = dict(
        heads=_attr(node, "q_num_heads"),
        kv_heads=_attr(node, "kv_num_heads"),
        scale=_attr(node, "scale"),
        window=window,
        softcap=_attr(node, "softcap", 0.0),
        **({"slopes": slopes} if slopes else {}),
    )
    both = e.emit(D.attention(*(e.expr(i) for i in (q, k, v, past_k, past_v)), **attrs))
    return tuple(Value(e.emit(relax.TupleGetItem(both, i))) for i in range(3))


def _join(e: Emitter, node: Any) -> Value:
    return Value(e.emit(D.join_columns(*(e.expr(i) for i in node.inputs))))


def _of_rows(operator: Callable[..., Any], *attributes: str) -> Callable[[Emitter, Any], Value]:
    """What reads rows alone and has the same attributes in both forms."""

    def emitted(e: Emitter, node: Any) -> Value:
        given = {name: _attr(node, name) for name in attributes}
        return Value(e.emit(operator(*(e.expr(i) for i in node.inputs), **given)))

    return emitted


def _split(e: Emitter, node: Any) -> tuple[Value | None, ...]:
    sizes = [int(s) for s in node.inputs[1].const_value.numpy()]
    x, out, start = e.expr(node.inputs[0]), list[Value | None](), 0
    for value, size in zip(node.outputs, sizes, strict=True):
        read = value.uses() or value.is_graph_output()
        out.append(Value(e.emit(D.take_columns(x, start=start, width=size))) if read else None)
        start += size
    return tuple(out)


_EMIT: dict[tuple[str, str], Callable[[Emitter, Any], Any]] = {
    ("", "Gather"): _gather,
    ("com.microsoft", "GatherBlockQuantized"): _embedding_nbits,
    ("", "MatMul"): _matmul,
    ("com.microsoft", "MatMulNBits"): _matmul_nbits,
    ("com.microsoft", "MatMulBnb4"): _matmul_bnb4,
    ("", "Add"): _add,
    ("", "Mul"): _multiply,
    ("", "Sigmoid"): _sigmoid,
    ("", "Gelu"): _gelu,
    (DOMAIN, "Gelu"): _gelu,
    ("", "Relu"): _relu,
    (DOMAIN, "SquaredRelu"): _relu,
    ("", "Tanh"): _tanh,
    ("", "Clip"): _clip,
    (DOMAIN, "XIELU"): _xielu,
    ("", "Concat"): _join,
    (DOMAIN, "AltUpPredict"): _of_rows(D.altup_predict, "streams"),
    (DOMAIN, "AltUpCorrect"): _of_rows(D.altup_correct, "streams", "active"),
    (DOMAIN, "AltUpAdd"): _of_rows(D.altup_add, "streams", "first"),
    (DOMAIN, "MatchMagnitude"): _of_rows(D.match_magnitude, "least"),
    (DOMAIN, "GaussianTopK"): _of_rows(D.gaussian_top_k, "deviations"),
    ("", "LayerNormalization"): _layer_norm,
    ("", "RMSNormalization"): _rms_norm,
    ("", "Reshape"): _reshape,
    ("", "RotaryEmbedding"): _rope,
    ("", "Attention"): _attention,
    ("", "Split"): _split,
}


def onnx_to_relax(decoder: Decoder) -> RelaxDecoder:
    """Translate a canonical decoder: its labelled nodes, as masks and positions are attributes and `pos` here.

    Raises:
        UserError: an operator is outside the vocabulary; the message names it and its node.
    """
    facts, graph = decoder.facts, decoder.model.graph
    n, past = tirx.Var("n", "int64"), tirx.Var("p", "int64")
    ids = relax.Var("input_ids", D.tensor([1, n], "int64"))
    caches = [
        relax.Var(f"past_key_values.{i}.{kind}", D.tensor([1, facts.kv_heads, past, facts.head_dim]))
        for i in range(facts.layers)
        for kind in ("key", "value")
    ]
    bb = relax.BlockBuilder()
    e = Emitter(bb, n, past, {v.name: Value(v) for v in (ids, *caches)})
    with bb.function("main"):
        with bb.dataflow():
            for node in computed_nodes(graph):
                e.node = node
                emit = _EMIT.get((node.domain, node.op_type))
                if emit is None:
                    raise UserError(f"{describe(node)}: the operator is not in the decoder vocabulary of COVERAGE.md")
                made = emit(e, node)
                made = made if isinstance(made, tuple) else (made,)
                e.values.update((o.name, v) for o, v in zip(node.outputs, made, strict=False) if v is not None)
            result = bb.emit_output(relax.Tuple([e.values[o.name].expr for o in graph.outputs]))
        bb.emit_func_output(result, [ids, *caches, *e.params.values()])
    return RelaxDecoder(bb.get(), facts, e.weights, tuple(e.origins))
