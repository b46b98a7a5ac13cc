"""The decoder dialect: Relax operators of our own, kept whole until lowering.

Costing, placement, quantisation and kernel choice work on these names. Each operator has type inference, is pure,
and has a reference body in stock Relax operators (its default FLegalize), so an unlowered module runs and gives the
semantics for tests. Tensors are [1, n, width]; head h of a row occupies columns h * head_dim and on.

    hsd.embedding(w, ids) {layout, vocab, width}                hsd.linear(x, w) {layout, columns}
    hsd.embedding_nbits(q, scale, zero, ids) {bits, block, ...} hsd.linear_nbits(x, q, scale, zero) {bits, block, ...}
    hsd.quantise_rows(x) {step, dtype} -> codes, scale, total   hsd.linear_int(codes, scale, total, ...) as linear_nbits
    hsd.rms_norm(x, w) {eps, groups}                            hsd.add_rms_norm(x, r, w) {eps} -> (x + r, norm)
    hsd.rope(x, cos, sin, pos) {heads, rotary_dim, interleaved} hsd.silu_mul(gate, up)
    hsd.layer_norm(x, w, b) {eps, groups, own}                  hsd.gelu_mul(gate, up) {tanh}
    hsd.learned_positions(w, ids, pos)                          hsd.gelu(x) {tanh, slope, cubic: if they are rounded}
    hsd.scale(x) {factor}                                       hsd.tanh(x)
    hsd.clip(x) {least, most}                                   hsd.xielu(x) {positive, negative, beta}
    hsd.attention(q, k, v, past_k, past_v) {heads, kv_heads, scale, window, softcap, slopes: of ALiBi}
        -> (o, present_k, present_v)
    hsd.attention_cached(q, k, v, keys, values, pos) {...}      hsd.argmax(logits) -> ids
    hsd.rope_rows, hsd.learned_positions_rows                   as without _rows; pos [n], one of each row
    hsd.attention_rows(q, k, v, keys, values, slot, pos) {...}  as attention_cached; row t at pos[t] of slot[t]
    hsd.attention_in_slot(q, k, v, keys, values, slot, pos)     as attention_cached, in one slot
    hsd.take_row(x, row)                                        row `row` of x, as [1, 1, width]
    hsd.take_columns(x) {start, width}                          columns start .. start + width of x
    hsd.join_columns(x, y)                                      x and y beside one another
    hsd.scale_columns(x, w)                                     hsd.match_magnitude(x, r) {least}
    hsd.altup_predict(x, c) {streams}                           hsd.gaussian_top_k(x) {deviations}
    hsd.altup_correct(x, a, c) {streams, active}                hsd.altup_add(x, a) {streams, first}

Weight layouts: "KN" and "NK" as in the ONNX file, "panels" packed for a processor (targets/cpu/kernels).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from passes.relax import reference_bodies as bodies
from passes.relax import stream_bodies as streams
from passes.relax.expressions import op_name, shape_of, tensor
from passes.relax.reference_bodies import attention_slopes, gelu_constants
from targets.errors import UserError

__all__ = ["attention_slopes", "gelu_constants", "op_name", "shape_of", "tensor"]  # the operators below beside them

R = relax.op
tvm_ffi.error.register_error("UserError", UserError)  # else one raised in a callback of TVM's arrives as RuntimeError


def _operator(name: str, infer: Callable[..., Any], reference: Callable[..., Any] | None) -> Callable[..., Any]:
    tvm.ir.register_op_attr(name, "FInferType", lambda call, ctx: infer(call.attrs, *[a.ty for a in call.args]))
    tvm.ir.register_op_attr(name, "FPurity", True)
    if reference is not None:
        tvm.ir.register_op_attr(name, "FLegalize", lambda bb, call: reference(bb, call.attrs, *call.args))
    return lambda *args, **attrs: relax.Call(name, list(args), attrs)


def _attention_type(attrs: Any, q: Any, k: Any, v: Any, past_k: Any, past_v: Any) -> Any:
    b, heads, past, dim = shape_of(past_k)
    present = tensor([b, heads, past + shape_of(k)[1], dim])
    return tvm.ir.TupleType([tensor(shape_of(q)), present, present])


def _columns(attrs: Any, x: Any, *_: Any) -> Any:
    return tensor([*shape_of(x)[:-1], int(attrs["columns"])])


def _quantised_type(attrs: Any, x: Any) -> Any:
    *rows, width = shape_of(x)
    steps, dtype = [*rows, width // int(attrs["step"])], str(attrs["dtype"])
    codes = tensor([*rows, width // (4 if dtype == "uint32" else 1)], dtype)
    return tvm.ir.TupleType([codes, tensor(steps), tensor(steps, "int32")])


def _embedded(attrs: Any, *args: Any) -> Any:
    return tensor([*shape_of(args[-1]), int(attrs["width"])])


def _same(attrs: Any, x: Any, *_: Any) -> Any:
    return x


linear = _operator("hsd.linear", _columns, bodies.linear_body)
linear_nbits = _operator("hsd.linear_nbits", _columns, bodies.linear_nbits_body)
quantise_rows = _operator("hsd.quantise_rows", _quantised_type, None)
linear_int = _operator("hsd.linear_int", _columns, None)
embedding = _operator("hsd.embedding", _embedded, bodies.embedding_body)
embedding_nbits = _operator("hsd.embedding_nbits", _embedded, bodies.embedding_nbits_body)
rms_norm = _operator("hsd.rms_norm", _same, bodies.rms_norm_body)
add_rms_norm = _operator("hsd.add_rms_norm", lambda a, x, r, w: tvm.ir.TupleType([x, x]), bodies.add_rms_norm_body)
rope = _operator("hsd.rope", _same, bodies.rope_body)
silu_mul = _operator("hsd.silu_mul", _same, lambda bb, a, g, u: bb.emit(R.multiply(bb.emit(R.nn.silu(g)), u)))
gelu = _operator("hsd.gelu", _same, bodies.gelu_body)
gelu_mul = _operator("hsd.gelu_mul", _same, bodies.gelu_mul_body)
relu = _operator("hsd.relu", _same, lambda bb, a, x: bb.emit(R.nn.relu(x)))
squared_relu = _operator("hsd.squared_relu", _same, bodies.squared_relu_body)
xielu = _operator("hsd.xielu", _same, bodies.xielu_body)
clip = _operator("hsd.clip", _same, lambda bb, a, x: bb.emit(R.clip(x, min=float(a["least"]), max=float(a["most"]))))
tanh = _operator("hsd.tanh", _same, lambda bb, a, x: bb.emit(R.tanh(x)))
scale = _operator("hsd.scale", _same, bodies.scale_body)
layer_norm = _operator("hsd.layer_norm", _same, bodies.layer_norm_body)
learned_positions = _operator(
    "hsd.learned_positions",
    lambda a, w, ids, pos: tensor([*shape_of(ids), shape_of(w)[1]]),
    bodies.learned_positions_body,
)
rope_rows = _operator("hsd.rope_rows", _same, None)
learned_positions_rows = _operator(
    "hsd.learned_positions_rows", lambda a, w, ids, pos: tensor([*shape_of(ids), shape_of(w)[1]]), None
)
attention = _operator("hsd.attention", _attention_type, bodies.attention_body)
attention_cached = _operator(
    "hsd.attention_cached",
    lambda a, q, k, v, keys, values, pos: tvm.ir.TupleType([q, keys, values]),
    None,
)
attention_rows = _operator(
    "hsd.attention_rows",
    lambda a, q, k, v, keys, values, slot, pos: tvm.ir.TupleType([q, keys, values]),
    None,
)
attention_in_slot = _operator(
    "hsd.attention_in_slot",
    lambda a, q, k, v, keys, values, slot, pos: tvm.ir.TupleType([q, keys, values]),
    None,
)
argmax = _operator(
    "hsd.argmax",
    lambda a, x: tensor(shape_of(x)[:-1], "int64"),
    lambda bb, a, x: bb.emit(R.argmax(x, axis=-1)),
)
take_columns = _operator(
    "hsd.take_columns",
    lambda a, x: tensor([*shape_of(x)[:-1], int(a["width"])]),
    lambda bb, a, x: bb.emit(R.strided_slice(x, [2], [int(a["start"])], [int(a["start"]) + int(a["width"])])),
)
join_columns = _operator(
    "hsd.join_columns",
    lambda a, x, y: tensor([*shape_of(x)[:-1], int(shape_of(x)[-1]) + int(shape_of(y)[-1])]),
    lambda bb, a, x, y: bb.emit(R.concat([x, y], 2)),
)
scale_columns = _operator("hsd.scale_columns", _same, lambda bb, a, x, w: bb.emit(R.multiply(x, w)))
altup_predict = _operator("hsd.altup_predict", _same, streams.altup_predict_body)
altup_correct = _operator("hsd.altup_correct", _same, streams.altup_correct_body)
altup_add = _operator("hsd.altup_add", _same, streams.altup_add_body)
match_magnitude = _operator("hsd.match_magnitude", _same, streams.match_magnitude_body)
gaussian_top_k = _operator("hsd.gaussian_top_k", _same, streams.gaussian_top_k_body)
take_row = _operator("hsd.take_row", lambda a, x, row: tensor([1, 1, shape_of(x)[-1]]), bodies.take_row_body)
