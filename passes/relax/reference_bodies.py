"""The decoder dialect's operators in stock Relax operators: their default FLegalize, which tests run."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, te, tirx

from passes.relax.expressions import shape_of
from targets.kernels.code_tables import code_value

R = relax.op


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


def linear_body(bb: Any, attrs: Any, x: Any, w: Any) -> Any:
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


def linear_nbits_body(bb: Any, attrs: Any, x: Any, q: Any, scale: Any, zero: Any) -> Any:
    _require_source_layout(attrs)
    w = _dequantise(bb, attrs, q, scale, zero, int(attrs["columns"]), int(attrs["k"]))
    return bb.emit(R.matmul(x, bb.emit(R.permute_dims(w))))


def embedding_body(bb: Any, attrs: Any, w: Any, ids: Any) -> Any:
    layout = _require_source_layout(attrs)
    w = w if layout == "NK" else bb.emit(R.permute_dims(w))
    return bb.emit(R.astype(bb.emit(R.take(w, ids, axis=0)), "float32"))


def embedding_nbits_body(bb: Any, attrs: Any, q: Any, scale: Any, zero: Any, ids: Any) -> Any:
    _require_source_layout(attrs)
    w = _dequantise(bb, attrs, q, scale, zero, int(attrs["vocab"]), int(attrs["width"]))
    return bb.emit(R.take(w, ids, axis=0))


def rms_norm_body(bb: Any, attrs: Any, x: Any, w: Any) -> Any:
    groups, eps = int(attrs["groups"]), float(attrs["eps"])
    b, n, width = shape_of(x)
    parts = bb.emit(R.reshape(x, (b, n, groups, width // groups)))
    y = bb.emit(R.nn.rms_norm(parts, w, axes=[-1], epsilon=eps))
    return bb.emit(R.reshape(y, (b, n, width)))


def add_rms_norm_body(bb: Any, attrs: Any, x: Any, r: Any, w: Any) -> Any:
    total = bb.emit(R.add(x, r))
    y = bb.emit(R.nn.rms_norm(total, w, axes=[-1], epsilon=float(attrs["eps"])))
    return relax.Tuple([total, y])


def layer_norm_body(bb: Any, attrs: Any, x: Any, w: Any, b: Any) -> Any:
    groups, eps = int(attrs["groups"]), float(attrs["eps"])
    one, n, width = shape_of(x)
    part = int(width) // groups
    parts = bb.emit(R.reshape(x, (one, n, groups, part)))
    unit, zero = (relax.const(np.full(part, number, np.float32)) for number in (1, 0))
    normed = bb.emit(R.nn.layer_norm(parts, unit, zero, axes=[-1], epsilon=eps))
    shape = (groups if int(attrs["own"]) else 1, part)
    w, b = (bb.emit(R.reshape(value, shape)) for value in (w, b))
    moved = bb.emit(R.add(bb.emit(R.multiply(normed, w)), b))
    return bb.emit(R.reshape(moved, (one, n, width)))


def gelu_body(bb: Any, attrs: Any, x: Any) -> Any:
    if not int(attrs["tanh"]) or not gelu_constants(attrs):
        return bb.emit(R.nn.gelu_tanh(x) if int(attrs["tanh"]) else R.nn.gelu(x))
    one, half, slope, cubic = (relax.const(c, "float32") for c in (1.0, 0.5, *gelu_constants(attrs)))
    square = bb.emit(R.multiply(bb.emit(R.multiply(x, x)), cubic))
    inner = bb.emit(R.multiply(bb.emit(R.multiply(x, slope)), bb.emit(R.add(square, one))))
    return bb.emit(R.multiply(bb.emit(R.multiply(x, half)), bb.emit(R.add(bb.emit(R.tanh(inner)), one))))


def gelu_constants(attrs: Any) -> tuple[float, ...]:
    """(slope, cubic) of a GELU whose constants the export has rounded; empty: the exact ones (lanes_gelu)."""
    return (float(attrs["slope"]), float(attrs["cubic"])) if "slope" in attrs else ()


def gelu_mul_body(bb: Any, attrs: Any, gate: Any, up: Any) -> Any:
    return bb.emit(R.multiply(gelu_body(bb, attrs, gate), up))


def squared_relu_body(bb: Any, attrs: Any, x: Any) -> Any:
    positive = bb.emit(R.nn.relu(x))
    return bb.emit(R.multiply(positive, positive))


def xielu_body(bb: Any, attrs: Any, x: Any) -> Any:
    positive, negative, beta, zero, one = (
        relax.const(number, "float32")
        for number in (*(float(attrs[name]) for name in ("positive", "negative", "beta")), 0.0, 1.0)
    )
    over, under = bb.emit(R.maximum(x, zero)), bb.emit(R.minimum(x, zero))
    grown = bb.emit(R.subtract(bb.emit(R.subtract(bb.emit(R.exp(under)), one)), under))
    square = bb.emit(R.multiply(bb.emit(R.multiply(over, over)), positive))
    curved = bb.emit(R.add(square, bb.emit(R.multiply(grown, negative))))
    return bb.emit(R.add(curved, bb.emit(R.multiply(x, beta))))


def scale_body(bb: Any, attrs: Any, x: Any) -> Any:
    return bb.emit(R.multiply(x, relax.const(float(attrs["factor"]), "float32")))


def learned_positions_body(bb: Any, attrs: Any, w: Any, ids: Any, pos: Any) -> Any:
    n, width = shape_of(ids)[1], shape_of(w)[1]

    def body(w: Any, pos: Any) -> Any:
        return te.compute((1, n, width), lambda _, t, c: w[pos + t, c].astype("float32"), name="learned_positions")

    return bb.emit_te(body, w, pos, primfunc_name_hint="learned_positions")


def rope_body(bb: Any, attrs: Any, x: Any, cos: Any, sin: Any, pos: Any) -> Any:
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


def attention_body(bb: Any, attrs: Any, q: Any, k: Any, v: Any, past_k: Any, past_v: Any) -> Any:
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


def take_row_body(bb: Any, attrs: Any, x: Any, row: Any) -> Any:
    _, _, width = shape_of(x)
    return bb.emit_te(
        lambda x, row: te.compute((1, 1, width), lambda i, _, c: x[i, row, c], name="take_row"),
        x,
        row,
        primfunc_name_hint="take_row",
    )
