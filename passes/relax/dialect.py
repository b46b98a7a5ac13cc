"""The decoder dialect: Relax operators of our own, kept whole until lowering.

Costing, placement, quantisation and kernel choice work on these names. Each operator has type inference, is pure,
and has a reference body in stock Relax operators (its default FLegalize), so an unlowered module runs and gives the
semantics for tests. Tensors are [1, n, width]; head h of a row occupies columns h * head_dim and on.

    hsd.embedding(w, ids) {layout, vocab, width}                hsd.linear(x, w) {layout, columns}
    hsd.embedding_nbits(q, scale, zero, ids) {bits, block, ...} hsd.linear_nbits(x, q, scale, zero) {bits, block, ...}
    hsd.quantise_rows(x) {step, dtype} -> codes, scale, total   hsd.linear_int(codes, scale, total, ...) as linear_nbits
    hsd.rms_norm(x, w) {eps, groups}                            hsd.add_rms_norm(x, r, w) {eps} -> (x + r, norm)
    hsd.rope(x, cos, sin, pos) {heads, rotary_dim, interleaved} hsd.silu_mul(gate, up)
    hsd.layer_norm(x, w, b) {eps}                               hsd.gelu_mul(gate, up) {tanh}
    hsd.learned_positions(w, ids, pos)                          hsd.gelu(x) {tanh, slope, cubic: if they are rounded}
    hsd.scale(x) {factor}                                       hsd.tanh(x)
    hsd.attention(q, k, v, past_k, past_v) {heads, kv_heads, scale, window, softcap, slopes: of ALiBi}
        -> (o, present_k, present_v)
    hsd.attention_cached(q, k, v, keys, values, pos) {...}      hsd.argmax(logits) -> ids
    hsd.rope_rows, hsd.learned_positions_rows                   as without _rows; pos [n], one of each row
    hsd.attention_rows(q, k, v, keys, values, slot, pos) {...}  as attention_cached; row t at pos[t] of slot[t]
    hsd.attention_in_slot(q, k, v, keys, values, slot, pos)     as attention_cached, in one slot
    hsd.take_row(x, row)                                        row `row` of x, as [1, 1, width]
    hsd.take_columns(x) {start, width}                          columns start .. start + width of x

Weight layouts: "KN" and "NK" as in the ONNX file, "panels" packed for a processor (targets/cpu/kernels).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax, te, tirx

from targets.errors import UserError
from targets.kernels.code_tables import code_value

R = relax.op
tvm_ffi.error.register_error("UserError", UserError)  # else one raised in a callback of TVM's arrives as RuntimeError


def tensor(shape: Any, dtype: str = "float32") -> Any:
    """The Relax type of a tensor."""
    return relax.TensorType(shape, dtype)


def shape_of(expr: Any) -> list[Any]:
    """Dimensions of an expression or a type, symbolic ones as they are."""
    ty = expr if isinstance(expr, relax.TensorType) else expr.ty
    return list(ty.shape.values)


def op_name(expr: Any) -> str:
    """Name of the operator a call calls, "" for anything else."""
    return str(expr.op.name) if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) else ""


def _operator(name: str, infer: Callable[..., Any], reference: Callable[..., Any] | None) -> Callable[..., Any]:
    tvm.ir.register_op_attr(name, "FInferType", lambda call, ctx: infer(call.attrs, *[a.ty for a in call.args]))
    tvm.ir.register_op_attr(name, "FPurity", True)
    if reference is not None:
        tvm.ir.register_op_attr(name, "FLegalize", lambda bb, call: reference(bb, call.attrs, *call.args))
    return lambda *args, **attrs: relax.Call(name, list(args), attrs)


def _require_source_layout(attrs: Any) -> str:
    layout = str(attrs["layout"])
    assert layout != "panels", "packed weights have no reference body: lower them with a kernel"
    return layout


def _split_heads(bb: Any, x: Any, heads: int) -> Any:
    b, n, width = shape_of(x)
    return bb.emit(R.permute_dims(bb.emit(R.reshape(x, (b, n, heads, width // heads))), [0, 2, 1, 3]))


def _join_heads(bb: Any, x: Any) -> Any:
    b, heads, n, dim = shape_of(x)
    return bb.emit(R.reshape(bb.emit(R.permute_dims(x, [0, 2, 1, 3])), (b, n, heads * dim)))


def _linear_reference(bb: Any, attrs: Any, x: Any, w: Any) -> Any:
    w = bb.emit(R.astype(w, "float32"))
    if _require_source_layout(attrs) == "NK":
        w = bb.emit(R.permute_dims(w))
    return bb.emit(R.matmul(x, w))


def _dequantise(bb: Any, attrs: Any, q: Any, scale: Any, zero: Any, rows: int, width: int) -> Any:
    """float32 [rows, width] from ONNX's layout: q [rows, blocks, bytes], scale and zero [rows, blocks].

    Zero points are packed like q, or floats.
    """
    bits, block, has_zero = int(attrs["bits"]), int(attrs["block"]), bool(int(attrs["zeros"]))
    per, blocks = 8 // bits, -(-width // block)
    mask = tirx.const((1 << bits) - 1, "uint8")
    packed = str(zero.ty.dtype) == "uint8"

    def nibble(byte: Any, i: Any) -> Any:
        return ((byte >> ((i % per) * bits).astype("uint8")) & mask).astype("float32")

    def body(q: Any, scale: Any, zero: Any) -> Any:
        def value(r: Any, c: Any) -> Any:
            b = c // block
            z = tirx.const(float(1 << (bits - 1)), "float32")
            if has_zero:
                z = nibble(zero[r, b // per], b) if packed else zero[r, b].astype("float32")
            if "table" in attrs:  # the first of two codes is in the high half of a byte
                code = nibble(q[r, b, (c % block) // per], c + 1).astype("int32")
                return code_value(code, str(attrs["table"])) * scale[r, b].astype("float32")
            return (nibble(q[r, b, (c % block) // per], c) - z) * scale[r, b].astype("float32")

        return te.compute((rows, width), value, name="dequantise")

    q = bb.emit(R.reshape(q, (rows, blocks, block // per)))
    scale = bb.emit(R.reshape(scale, (rows, blocks)))
    if has_zero:
        zero = bb.emit(R.reshape(zero, (rows, -(-blocks // per) if packed else blocks)))
    return bb.emit_te(body, q, scale, zero, primfunc_name_hint="dequantise")


def _linear_nbits_reference(bb: Any, attrs: Any, x: Any, q: Any, scale: Any, zero: Any) -> Any:
    _require_source_layout(attrs)
    w = _dequantise(bb, attrs, q, scale, zero, int(attrs["columns"]), int(attrs["k"]))
    return bb.emit(R.matmul(x, bb.emit(R.permute_dims(w))))


def _embedding_reference(bb: Any, attrs: Any, w: Any, ids: Any) -> Any:
    layout = _require_source_layout(attrs)
    w = w if layout == "NK" else bb.emit(R.permute_dims(w))
    return bb.emit(R.astype(bb.emit(R.take(w, ids, axis=0)), "float32"))


def _embedding_nbits_reference(bb: Any, attrs: Any, q: Any, scale: Any, zero: Any, ids: Any) -> Any:
    _require_source_layout(attrs)
    w = _dequantise(bb, attrs, q, scale, zero, int(attrs["vocab"]), int(attrs["width"]))
    return bb.emit(R.take(w, ids, axis=0))


def _rms_norm_reference(bb: Any, attrs: Any, x: Any, w: Any) -> Any:
    groups, eps = int(attrs["groups"]), float(attrs["eps"])
    b, n, width = shape_of(x)
    parts = bb.emit(R.reshape(x, (b, n, groups, width // groups)))
    y = bb.emit(R.nn.rms_norm(parts, w, axes=[-1], epsilon=eps))
    return bb.emit(R.reshape(y, (b, n, width)))


def _add_rms_norm_reference(bb: Any, attrs: Any, x: Any, r: Any, w: Any) -> Any:
    total = bb.emit(R.add(x, r))
    y = bb.emit(R.nn.rms_norm(total, w, axes=[-1], epsilon=float(attrs["eps"])))
    return relax.Tuple([total, y])


def _layer_norm_reference(bb: Any, attrs: Any, x: Any, w: Any, b: Any) -> Any:
    return bb.emit(R.nn.layer_norm(x, w, b, axes=[-1], epsilon=float(attrs["eps"])))


def _gelu_reference(bb: Any, attrs: Any, x: Any) -> Any:
    if not int(attrs["tanh"]) or not gelu_constants(attrs):
        return bb.emit(R.nn.gelu_tanh(x) if int(attrs["tanh"]) else R.nn.gelu(x))
    one, half, slope, cubic = (relax.const(c, "float32") for c in (1.0, 0.5, *gelu_constants(attrs)))
    square = bb.emit(R.multiply(bb.emit(R.multiply(x, x)), cubic))
    inner = bb.emit(R.multiply(bb.emit(R.multiply(x, slope)), bb.emit(R.add(square, one))))
    return bb.emit(R.multiply(bb.emit(R.multiply(x, half)), bb.emit(R.add(bb.emit(R.tanh(inner)), one))))


def gelu_constants(attrs: Any) -> tuple[float, ...]:
    """(slope, cubic) of a GELU whose constants the export has rounded; empty: the exact ones (lanes_gelu)."""
    return (float(attrs["slope"]), float(attrs["cubic"])) if "slope" in attrs else ()


def _gelu_mul_reference(bb: Any, attrs: Any, gate: Any, up: Any) -> Any:
    return bb.emit(R.multiply(_gelu_reference(bb, attrs, gate), up))


def _squared_relu_reference(bb: Any, attrs: Any, x: Any) -> Any:
    positive = bb.emit(R.nn.relu(x))
    return bb.emit(R.multiply(positive, positive))


def _scale_reference(bb: Any, attrs: Any, x: Any) -> Any:
    return bb.emit(R.multiply(x, relax.const(float(attrs["factor"]), "float32")))


def _learned_positions_reference(bb: Any, attrs: Any, w: Any, ids: Any, pos: Any) -> Any:
    n, width = shape_of(ids)[1], shape_of(w)[1]

    def body(w: Any, pos: Any) -> Any:
        return te.compute((1, n, width), lambda _, t, c: w[pos + t, c].astype("float32"), name="learned_positions")

    return bb.emit_te(body, w, pos, primfunc_name_hint="learned_positions")


def _rope_reference(bb: Any, attrs: Any, x: Any, cos: Any, sin: Any, pos: Any) -> Any:
    heads, rotary = int(attrs["heads"]), int(attrs["rotary_dim"])
    interleaved = bool(int(attrs["interleaved"]))
    b, n, width = shape_of(x)
    dim, half = int(width) // heads, rotary // 2

    def body(x: Any, cos: Any, sin: Any, pos: Any) -> Any:
        def value(i: Any, t: Any, c: Any) -> Any:
            d = c % dim
            j = d // 2 if interleaved else d % half
            partner = (
                tirx.if_then_else(d % 2 == 0, c + 1, c - 1)
                if interleaved
                else tirx.if_then_else(d < half, c + half, c - half)
            )
            first = d % 2 == 0 if interleaved else d < half
            j = tirx.min(j, half - 1)
            other = tirx.if_then_else(first, -x[i, t, partner], x[i, t, partner])
            turned = x[i, t, c] * cos[pos + t, j] + other * sin[pos + t, j]
            return turned if rotary == dim else tirx.if_then_else(d < rotary, turned, x[i, t, c])

        return te.compute((b, n, width), value, name="rope")

    return bb.emit_te(body, x, cos, sin, pos, primfunc_name_hint="rope")


def attention_slopes(attrs: Any) -> tuple[float, ...]:
    """Of each head, what the distance of a key in tokens is multiplied by and added to its score; empty: nothing is."""
    return tuple(map(float, attrs["slopes"])) if "slopes" in attrs else ()


def _attention_reference(bb: Any, attrs: Any, q: Any, k: Any, v: Any, past_k: Any, past_v: Any) -> Any:
    heads, kv_heads = int(attrs["heads"]), int(attrs["kv_heads"])
    window, softcap = int(attrs["window"]), float(attrs["softcap"])
    past = shape_of(past_k)[2]
    q, k, v = _split_heads(bb, q, heads), _split_heads(bb, k, kv_heads), _split_heads(bb, v, kv_heads)
    k, v = bb.emit(R.concat([past_k, k], 2)), bb.emit(R.concat([past_v, v], 2))
    b, _, n, dim = shape_of(q)
    total, share = shape_of(k)[2], heads // kv_heads
    grouped = bb.emit(R.reshape(q, (b, kv_heads, share * n, dim)))
    s = bb.emit(R.matmul(grouped, bb.emit(R.permute_dims(k, [0, 1, 3, 2]))))
    s = bb.emit(R.reshape(s, (b, heads, n, total)))
    s = bb.emit(R.multiply(s, relax.const(float(attrs["scale"]), "float32")))
    if softcap > 0:
        s = bb.emit(R.tanh(bb.emit(R.multiply(s, relax.const(1.0 / softcap, "float32")))))
        s = bb.emit(R.multiply(s, relax.const(softcap, "float32")))

    slopes = relax.const(np.array(attention_slopes(attrs) or (0.0,), np.float32))

    def masked(s: Any, slopes: Any) -> Any:
        def value(i: Any, h: Any, t: Any, j: Any) -> Any:
            seen = j <= t + past
            if window > 0:
                seen = tirx.all(seen, j > t + past - window)
            bias = slopes[h] * (j - t - past).astype("float32") if "slopes" in attrs else 0.0
            return tirx.if_then_else(seen, s[i, h, t, j] + bias, tirx.min_value("float32"))

        return te.compute((b, heads, n, total), value, name="causal")

    p = bb.emit(R.nn.softmax(bb.emit_te(masked, s, slopes, primfunc_name_hint="causal"), -1))
    o = bb.emit(R.matmul(bb.emit(R.reshape(p, (b, kv_heads, share * n, total))), v))
    return relax.Tuple([_join_heads(bb, bb.emit(R.reshape(o, (b, heads, n, dim)))), k, v])


def _attention_type(attrs: Any, q: Any, k: Any, v: Any, past_k: Any, past_v: Any) -> Any:
    b, heads, past, dim = shape_of(past_k)
    present = tensor([b, heads, past + shape_of(k)[1], dim])
    return tvm.ir.TupleType([tensor(shape_of(q)), present, present])


def _take_row_reference(bb: Any, attrs: Any, x: Any, row: Any) -> Any:
    _, _, width = shape_of(x)
    return bb.emit_te(
        lambda x, row: te.compute((1, 1, width), lambda i, _, c: x[i, row, c], name="take_row"),
        x,
        row,
        primfunc_name_hint="take_row",
    )


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


linear = _operator("hsd.linear", _columns, _linear_reference)
linear_nbits = _operator("hsd.linear_nbits", _columns, _linear_nbits_reference)
quantise_rows = _operator("hsd.quantise_rows", _quantised_type, None)
linear_int = _operator("hsd.linear_int", _columns, None)
embedding = _operator("hsd.embedding", _embedded, _embedding_reference)
embedding_nbits = _operator("hsd.embedding_nbits", _embedded, _embedding_nbits_reference)
rms_norm = _operator("hsd.rms_norm", _same, _rms_norm_reference)
add_rms_norm = _operator("hsd.add_rms_norm", lambda a, x, r, w: tvm.ir.TupleType([x, x]), _add_rms_norm_reference)
rope = _operator("hsd.rope", _same, _rope_reference)
silu_mul = _operator("hsd.silu_mul", _same, lambda bb, a, g, u: bb.emit(R.multiply(bb.emit(R.nn.silu(g)), u)))
gelu = _operator("hsd.gelu", _same, _gelu_reference)
gelu_mul = _operator("hsd.gelu_mul", _same, _gelu_mul_reference)
relu = _operator("hsd.relu", _same, lambda bb, a, x: bb.emit(R.nn.relu(x)))
squared_relu = _operator("hsd.squared_relu", _same, _squared_relu_reference)
tanh = _operator("hsd.tanh", _same, lambda bb, a, x: bb.emit(R.tanh(x)))
scale = _operator("hsd.scale", _same, _scale_reference)
layer_norm = _operator("hsd.layer_norm", _same, _layer_norm_reference)
learned_positions = _operator(
    "hsd.learned_positions",
    lambda a, w, ids, pos: tensor([*shape_of(ids), shape_of(w)[1]]),
    _learned_positions_reference,
)
rope_rows = _operator("hsd.rope_rows", _same, None)
learned_positions_rows = _operator(
    "hsd.learned_positions_rows", lambda a, w, ids, pos: tensor([*shape_of(ids), shape_of(w)[1]]), None
)
attention = _operator("hsd.attention", _attention_type, _attention_reference)
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
take_row = _operator("hsd.take_row", lambda a, x, row: tensor([1, 1, shape_of(x)[-1]]), _take_row_reference)
