"""Decoder dialect -> OpenCL kernels of one GPU: one legalisation table, nothing of ours left afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

from passes.lower.kernel_calls import first_outputs, kernel_call, operators_left, sizes
from passes.relax import dialect as D
from targets.errors import UserError
from targets.opencl.kernels.argmax import argmax, argmax_parts
from targets.opencl.kernels.attention import attention_cached, key_blocks, scratch_rows
from targets.opencl.kernels.elementwise import add, add_bias, gelu, gelu_mul, scale, silu_mul, tanh
from targets.opencl.kernels.embedding import embedding, embedding_nbits
from targets.opencl.kernels.linear import linear
from targets.opencl.kernels.linear_nbits import linear_nbits
from targets.opencl.kernels.norm import add_rms_norm, layer_norm, partial_sums, rms_norm
from targets.opencl.kernels.rope import rope
from targets.opencl.kernels.take import learned_positions, take_columns, take_row
from targets.opencl.tile import GpuTile

Legalise = Callable[[Any, Any], Any]


@tvm.transform.module_pass(opt_level=0, name="LowerMali")
class LowerMali:
    """Replace every operator of the dialect by a call of its OpenCL kernel for `tile`."""

    def __init__(self, tile: GpuTile):
        self.tile = tile

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Lower all functions; asserts that no operator of ours is left: it would run its slow reference."""
        lowered = relax.transform.LegalizeOps(_table(self.tile))(mod)
        left = operators_left(lowered)
        assert not left, f"operators without an OpenCL kernel: {left}"
        return lowered


def _dtype(weight: Any) -> str:
    """The type of a weight; float16 travels as its bits."""
    dtype = str(weight.ty.dtype)
    if dtype not in ("float32", "uint16"):
        raise UserError(
            f"{dtype} weights have no GPU kernel: export the model in float32 or float16, or use --place cpu"
        )
    return "float16" if dtype == "uint16" else dtype


def _zero_dtype(zero: Any) -> str:
    """The type of zero points: bytes, or as weights."""
    return "uint8" if str(zero.ty.dtype) == "uint8" else _dtype(zero)


def _gelu(attrs: Any) -> tuple[Any, ...]:
    """Which GELU: by tanh or erf, and its constants where they are rounded."""
    return bool(int(attrs["tanh"])), *D.gelu_constants(attrs)


def _table(tile: GpuTile) -> dict[str, Legalise]:
    def lower_linear(bb: Any, call: Any) -> Any:
        x, w = call.args
        _, n, k = sizes(x)
        columns = int(call.attrs["columns"])
        func = linear(tile, n, k, columns, _dtype(w))
        return kernel_call(bb, func, f"linear_{n}_{k}_{columns}", [x, w], call.ty)

    def lower_linear_nbits(bb: Any, call: Any) -> Any:
        x, _, by, zero = call.args
        _, n, k = sizes(x)
        bits, block, columns = (int(call.attrs[a]) for a in ("bits", "block", "columns"))
        stored = (_dtype(by), bool(int(call.attrs["zeros"])), _zero_dtype(zero))
        func = linear_nbits(tile, n, k, columns, bits, block, *stored)
        return kernel_call(bb, func, f"linear_{bits}bit_{n}_{k}_{columns}", list(call.args), call.ty)

    def lower_embedding(bb: Any, call: Any) -> Any:
        w, ids = call.args
        n, vocab, width = sizes(ids)[1], int(call.attrs["vocab"]), int(call.attrs["width"])
        func = embedding(tile, n, vocab, width, _dtype(w))
        return kernel_call(bb, func, f"embedding_{n}", [w, ids], call.ty)

    def lower_embedding_nbits(bb: Any, call: Any) -> Any:
        _, by, zero, ids = call.args
        n = sizes(ids)[1]
        vocab, width, bits, block = (int(call.attrs[a]) for a in ("vocab", "width", "bits", "block"))
        stored = (_dtype(by), bool(int(call.attrs["zeros"])), _zero_dtype(zero))
        func = embedding_nbits(tile, n, vocab, width, bits, block, *stored)
        return kernel_call(bb, func, f"embedding_{bits}bit_{n}", list(call.args), call.ty)

    def lower_rms_norm(bb: Any, call: Any) -> Any:
        _, n, width = sizes(call.args[0])
        groups = int(call.attrs["groups"])
        func = rms_norm(tile, n, width, groups, float(call.attrs["eps"]))
        types = [call.ty, D.tensor((n * groups, partial_sums(width // groups)))]
        return first_outputs(bb, kernel_call(bb, func, f"rms_norm_{n}_{groups}", list(call.args), types), 1)

    def lower_add_rms_norm(bb: Any, call: Any) -> Any:
        _, n, width = sizes(call.args[0])
        func = add_rms_norm(tile, n, width, float(call.attrs["eps"]))
        types = [*call.ty.fields, D.tensor((n, partial_sums(width)))]
        return first_outputs(bb, kernel_call(bb, func, f"add_rms_norm_{n}", list(call.args), types), 2)

    def lower_layer_norm(bb: Any, call: Any) -> Any:
        _, n, width = sizes(call.args[0])
        func = layer_norm(tile, n, width, float(call.attrs["eps"]))
        return kernel_call(bb, func, f"layer_norm_{n}", list(call.args), call.ty)

    def lower_add(bb: Any, call: Any) -> Any:
        a, b = call.args
        _, n, width = sizes(a)
        func = add(tile, n, width) if b.ty.ndim == 3 else add_bias(tile, n, width)
        return kernel_call(bb, func, f"add_{n}_{width}", [a, b], call.ty)

    def elementwise(name: str, make: Callable[[int, int, Any], Any]) -> Legalise:
        def lower(bb: Any, call: Any) -> Any:
            _, n, width = sizes(call.args[0])
            return kernel_call(bb, make(n, width, call.attrs), f"{name}_{n}_{width}", list(call.args), call.ty)

        return lower

    def lower_rope(bb: Any, call: Any) -> Any:
        x, cos, _, _ = call.args
        _, n, width = sizes(x)
        heads, rotary_dim = int(call.attrs["heads"]), int(call.attrs["rotary_dim"])
        interleaved = bool(int(call.attrs["interleaved"]))
        func = rope(tile, n, heads, width // heads, rotary_dim, sizes(cos)[0], interleaved)
        return kernel_call(bb, func, f"rope_{n}_{heads}", list(call.args), call.ty)

    def lower_learned_positions(bb: Any, call: Any) -> Any:
        w, ids, _ = call.args
        (rows, width), n = sizes(w), sizes(ids)[1]
        func = learned_positions(tile, n, rows, width, _dtype(w))
        return kernel_call(bb, func, f"learned_positions_{n}", list(call.args), call.ty)

    def lower_attention(bb: Any, call: Any) -> Any:
        q, _, _, keys, values, _ = call.args
        n, heads, (_, kv_heads, context, head_dim) = sizes(q)[1], int(call.attrs["heads"]), sizes(values)
        func = attention_cached(
            tile,
            *(n, heads, kv_heads, head_dim, context),
            *(float(call.attrs["scale"]), int(call.attrs["window"]), float(call.attrs["softcap"])),
        )
        gv = bb.add_func(func.without_attr("global_symbol"), f"attention_{n}")
        rows = scratch_rows(n, heads, context)
        scratch = [D.tensor((rows, heads, context)), D.tensor((rows, heads, key_blocks(context), 2))]
        types = [q.ty, keys.ty, values.ty, *scratch]
        whole = relax.op.call_tir_inplace(gv, list(call.args), [-1, 3, 4, -1, -1], types)
        return first_outputs(bb, whole, 3)

    def lower_argmax(bb: Any, call: Any) -> Any:
        _, n, vocab = sizes(call.args[0])
        parts = (n, argmax_parts(vocab))
        types = [call.ty, D.tensor(parts), D.tensor(parts, "int32")]
        return first_outputs(bb, kernel_call(bb, argmax(tile, n, vocab), f"argmax_{n}", list(call.args), types), 1)

    def lower_take_row(bb: Any, call: Any) -> Any:
        _, n, width = sizes(call.args[0])
        return kernel_call(bb, take_row(tile, n, width), f"take_row_{n}", list(call.args), call.ty)

    def lower_take_columns(bb: Any, call: Any) -> Any:
        _, n, width = sizes(call.args[0])
        func = take_columns(tile, n, width, int(call.attrs["start"]), int(call.attrs["width"]))
        return kernel_call(bb, func, f"take_columns_{n}", list(call.args), call.ty)

    return {
        "hsd.linear": lower_linear,
        "hsd.linear_nbits": lower_linear_nbits,
        "hsd.embedding": lower_embedding,
        "hsd.embedding_nbits": lower_embedding_nbits,
        "hsd.rms_norm": lower_rms_norm,
        "hsd.add_rms_norm": lower_add_rms_norm,
        "hsd.layer_norm": lower_layer_norm,
        "hsd.silu_mul": elementwise("silu_mul", lambda n, width, a: silu_mul(tile, n, width)),
        "hsd.gelu_mul": elementwise("gelu_mul", lambda n, width, a: gelu_mul(tile, n, width, *_gelu(a))),
        "hsd.gelu": elementwise("gelu", lambda n, width, a: gelu(tile, n, width, *_gelu(a))),
        "hsd.tanh": elementwise("tanh", lambda n, width, a: tanh(tile, n, width)),
        "hsd.scale": elementwise("scale", lambda n, width, a: scale(tile, n, width, float(a["factor"]))),
        "hsd.learned_positions": lower_learned_positions,
        "hsd.rope": lower_rope,
        "hsd.attention_cached": lower_attention,
        "hsd.argmax": lower_argmax,
        "hsd.take_row": lower_take_row,
        "hsd.take_columns": lower_take_columns,
        "relax.add": lower_add,
    }
