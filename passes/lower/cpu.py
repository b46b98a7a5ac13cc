"""Decoder dialect -> kernels of one CPU: one legalisation table, nothing of ours left afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax

from passes.relax import dialect as D
from targets.cpu.kernels.argmax import argmax
from targets.cpu.kernels.attention import attention_cached
from targets.cpu.kernels.elementwise import add, add_bias, gelu, gelu_mul, scale, silu_mul, tanh
from targets.cpu.kernels.embedding import embedding, embedding_nbits
from targets.cpu.kernels.linear import linear
from targets.cpu.kernels.linear_nbits import linear_nbits
from targets.cpu.kernels.norm import add_rms_norm, layer_norm, rms_norm
from targets.cpu.kernels.rope import rope
from targets.cpu.kernels.take import learned_positions, take_columns, take_row
from targets.cpu.tile import CpuTile
from targets.errors import UserError

Legalise = Callable[[Any, Any], Any]


@tvm.transform.module_pass(opt_level=0, name="LowerCpu")
class LowerCpu:
    """Replace every operator of the dialect by a call of its kernel for `tile`."""

    def __init__(self, tile: CpuTile):
        self.tile = tile

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Lower all functions; asserts that no operator of ours is left: it would run its slow reference."""
        lowered = relax.transform.LegalizeOps(_table(self.tile))(mod)
        left = sorted(_operators(lowered))
        assert not left, f"operators without a CPU kernel: {left}"
        return lowered


def _operators(mod: Any) -> set[str]:
    """Names of operators of ours, and of stock tensor operators, still called in a module."""
    found: set[str] = set()
    for func in mod.functions.values():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func.body, lambda e: found.add(D.op_name(e)))
    return {n for n in found if n.startswith("hsd.") or (n.startswith("relax.") and n not in _PLUMBING)}


_PLUMBING = {"relax.call_tir", "relax.call_tir_inplace"}


def _sizes(expr: Any) -> list[int]:
    return [int(d) for d in D.shape_of(expr)]


def _kernel(bb: Any, func: Any, name: str, args: list[Any], out_ty: Any) -> Any:
    """A call of a PrimFunc added to the module; structurally equal functions are shared."""
    return relax.call_tir(bb.add_func(func.without_attr("global_symbol"), name), args, out_ty=out_ty)


def _whole_vectors(tile: CpuTile, width: int, what: str) -> int:
    if width % tile.lanes:
        raise UserError(
            f"{what} of {width} is not a multiple of {tile.lanes}, the float32 lanes of this board's CPU: not supported"
        )
    return width


def _gelu(attrs: Any) -> tuple[Any, ...]:
    """Which GELU: by tanh or erf, and its constants where they are rounded."""
    return bool(int(attrs["tanh"])), *D.gelu_constants(attrs)


def _table(tile: CpuTile) -> dict[str, Legalise]:
    def lower_linear(bb: Any, call: Any) -> Any:
        x, w = call.args
        _, n, k = _sizes(x)
        columns, dtype = int(call.attrs["columns"]), str(w.ty.dtype)
        func = linear(tile, n, k, columns, dtype)
        return _kernel(bb, func, f"linear_{n}_{k}_{columns}", [x, w], call.ty)

    def lower_linear_nbits(bb: Any, call: Any) -> Any:
        x, _, scale, zero = call.args
        _, n, k = _sizes(x)
        bits, block, columns = (int(call.attrs[a]) for a in ("bits", "block", "columns"))
        zeros = bool(int(call.attrs["zeros"]))
        func = linear_nbits(tile, n, k, columns, bits, block, str(scale.ty.dtype), zeros, str(zero.ty.dtype))
        return _kernel(bb, func, f"linear_{bits}bit_{n}_{k}_{columns}", list(call.args), call.ty)

    def lower_embedding(bb: Any, call: Any) -> Any:
        w, ids = call.args
        n, vocab, width = _sizes(ids)[1], int(call.attrs["vocab"]), int(call.attrs["width"])
        func = embedding(tile, n, vocab, width, str(w.ty.dtype))
        return _kernel(bb, func, f"embedding_{n}", [w, ids], call.ty)

    def lower_embedding_nbits(bb: Any, call: Any) -> Any:
        _, scale, zero, ids = call.args
        n = _sizes(ids)[1]
        vocab, width, bits, block = (int(call.attrs[a]) for a in ("vocab", "width", "bits", "block"))
        zeros = bool(int(call.attrs["zeros"]))
        func = embedding_nbits(tile, n, vocab, width, bits, block, str(scale.ty.dtype), zeros, str(zero.ty.dtype))
        return _kernel(bb, func, f"embedding_{bits}bit_{n}", list(call.args), call.ty)

    def lower_rms_norm(bb: Any, call: Any) -> Any:
        _, n, width = _sizes(call.args[0])
        groups = int(call.attrs["groups"])
        _whole_vectors(tile, width // groups, "a normalised width")
        func = rms_norm(tile, n, width, groups, float(call.attrs["eps"]))
        return _kernel(bb, func, f"rms_norm_{n}_{groups}", list(call.args), call.ty)

    def lower_add_rms_norm(bb: Any, call: Any) -> Any:
        _, n, width = _sizes(call.args[0])
        func = add_rms_norm(tile, n, _whole_vectors(tile, width, "a hidden size"), float(call.attrs["eps"]))
        return _kernel(bb, func, f"add_rms_norm_{n}", list(call.args), list(call.ty.fields))

    def lower_add(bb: Any, call: Any) -> Any:
        a, b = call.args
        _, n, width = _sizes(a)
        _whole_vectors(tile, width, "a row")
        func = add(tile, n, width) if b.ty.ndim == 3 else add_bias(tile, n, width)
        return _kernel(bb, func, f"add_{n}_{width}", [a, b], call.ty)

    def lower_silu_mul(bb: Any, call: Any) -> Any:
        _, n, width = _sizes(call.args[0])
        func = silu_mul(tile, n, _whole_vectors(tile, width, "an FFN size"))
        return _kernel(bb, func, f"silu_mul_{n}", list(call.args), call.ty)

    def lower_gelu_mul(bb: Any, call: Any) -> Any:
        _, n, width = _sizes(call.args[0])
        func = gelu_mul(tile, n, _whole_vectors(tile, width, "an FFN size"), *_gelu(call.attrs))
        return _kernel(bb, func, f"gelu_mul_{n}", list(call.args), call.ty)

    def lower_gelu(bb: Any, call: Any) -> Any:
        _, n, width = _sizes(call.args[0])
        func = gelu(tile, n, _whole_vectors(tile, width, "an FFN size"), *_gelu(call.attrs))
        return _kernel(bb, func, f"gelu_{n}", list(call.args), call.ty)

    def lower_tanh(bb: Any, call: Any) -> Any:
        _, n, width = _sizes(call.args[0])
        return _kernel(bb, tanh(tile, n, _whole_vectors(tile, width, "a row")), f"tanh_{n}", list(call.args), call.ty)

    def lower_scale(bb: Any, call: Any) -> Any:
        _, n, width = _sizes(call.args[0])
        func = scale(tile, n, _whole_vectors(tile, width, "a row"), float(call.attrs["factor"]))
        return _kernel(bb, func, f"scale_{n}", list(call.args), call.ty)

    def lower_layer_norm(bb: Any, call: Any) -> Any:
        _, n, width = _sizes(call.args[0])
        func = layer_norm(tile, n, _whole_vectors(tile, width, "a hidden size"), float(call.attrs["eps"]))
        return _kernel(bb, func, f"layer_norm_{n}", list(call.args), call.ty)

    def lower_learned_positions(bb: Any, call: Any) -> Any:
        w, ids, _ = call.args
        (rows, width), n = _sizes(w), _sizes(ids)[1]
        func = learned_positions(n, rows, width, str(w.ty.dtype))
        return _kernel(bb, func, f"learned_positions_{n}", list(call.args), call.ty)

    def lower_rope(bb: Any, call: Any) -> Any:
        x, cos, _, _ = call.args
        _, n, width = _sizes(x)
        heads, rotary_dim = int(call.attrs["heads"]), int(call.attrs["rotary_dim"])
        interleaved = bool(int(call.attrs["interleaved"]))
        func = rope(tile, n, heads, width // heads, rotary_dim, _sizes(cos)[0], interleaved)
        return _kernel(bb, func, f"rope_{n}_{heads}", list(call.args), call.ty)

    def lower_attention(bb: Any, call: Any) -> Any:
        q, _, _, keys, values, _ = call.args
        n, (_, kv_heads, context, head_dim) = _sizes(q)[1], _sizes(values)
        _whole_vectors(tile, head_dim, "a head dimension")
        func = attention_cached(
            tile,
            *(n, int(call.attrs["heads"]), kv_heads, head_dim, context),
            *(float(call.attrs["scale"]), int(call.attrs["window"]), float(call.attrs["softcap"])),
        )
        gv = bb.add_func(func.without_attr("global_symbol"), f"attention_{n}")
        types = [q.ty, keys.ty, values.ty]
        return relax.op.call_tir_inplace(gv, list(call.args), [-1, 3, 4], types)

    def lower_argmax(bb: Any, call: Any) -> Any:
        _, n, vocab = _sizes(call.args[0])
        return _kernel(bb, argmax(tile, n, vocab), f"argmax_{n}", list(call.args), call.ty)

    def lower_take_row(bb: Any, call: Any) -> Any:
        _, n, width = _sizes(call.args[0])
        return _kernel(bb, take_row(n, width), f"take_row_{n}", list(call.args), call.ty)

    def lower_take_columns(bb: Any, call: Any) -> Any:
        _, n, width = _sizes(call.args[0])
        start, part = int(call.attrs["start"]), int(call.attrs["width"])
        return _kernel(bb, take_columns(n, width, start, part), f"take_columns_{n}", list(call.args), call.ty)

    return {
        "hsd.linear": lower_linear,
        "hsd.linear_nbits": lower_linear_nbits,
        "hsd.embedding": lower_embedding,
        "hsd.embedding_nbits": lower_embedding_nbits,
        "hsd.rms_norm": lower_rms_norm,
        "hsd.add_rms_norm": lower_add_rms_norm,
        "hsd.silu_mul": lower_silu_mul,
        "hsd.gelu_mul": lower_gelu_mul,
        "hsd.gelu": lower_gelu,
        "hsd.tanh": lower_tanh,
        "hsd.scale": lower_scale,
        "hsd.layer_norm": lower_layer_norm,
        "hsd.learned_positions": lower_learned_positions,
        "hsd.rope": lower_rope,
        "hsd.attention_cached": lower_attention,
        "hsd.argmax": lower_argmax,
        "hsd.take_row": lower_take_row,
        "hsd.take_columns": lower_take_columns,
        "relax.add": lower_add,
    }
