"""From operator to kernel: which maker of a backend serves an operator of the decoder dialect, and with which sizes.

One entry an operator, whatever the processor. A backend (targets/backend.py) brings the makers, whose signatures stand
in targets/kernels/signatures.py, says in which types it reads weights, and may refuse widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import relax

from passes.lower.kernel_calls import first_outputs, operators_left, sizes
from passes.relax import dialect as D
from targets.backend import HOST, Backend, Kernels
from targets.errors import UserError
from targets.kernels.made import made
from targets.kv_format import DEFAULT_KV, KV_FORMATS

Sizes = dict[str, Any]
Stored = Callable[[Any], str]  # the type in which a backend reads a weight


@dataclass(frozen=True)
class Operator:
    """How one operator becomes a call of a kernel.

    Attributes:
        maker: the kernel's maker (targets/kernels/signatures.py).
        sizes: (call, stored) -> the keyword arguments of the maker.
        name: of the PrimFunc in the module, a format of the sizes.
        places: of each output, the argument that is written in place, or -1 for a new tensor; empty: all are new.
    """

    maker: str
    sizes: Callable[[Any, Stored], Sizes]
    name: str
    places: tuple[int, ...] = ()


def _n_width(call: Any, stored: Stored) -> Sizes:
    _, n, width = sizes(call.args[0])
    return {"n": n, "width": width}


def _n_width_eps(call: Any, stored: Stored) -> Sizes:
    return {**_n_width(call, stored), "eps": float(call.attrs["eps"])}


def _rms_norm(call: Any, stored: Stored) -> Sizes:
    return {**_n_width_eps(call, stored), "groups": int(call.attrs["groups"])}


def _layer_norm(call: Any, stored: Stored) -> Sizes:
    of_parts = {"groups": int(call.attrs["groups"]), "own": bool(int(call.attrs["own"]))}
    return {**_n_width_eps(call, stored), **of_parts}


def _gelu(call: Any, stored: Stored) -> Sizes:
    constants = dict(zip(("slope", "cubic"), D.gelu_constants(call.attrs), strict=False))
    return {**_n_width(call, stored), "tanh": bool(int(call.attrs["tanh"])), **constants}


def _linear(call: Any, stored: Stored) -> Sizes:
    x, w = call.args
    _, n, k = sizes(x)
    return {"n": n, "k": k, "columns": int(call.attrs["columns"]), "dtype": stored(w)}


def _quantised(attrs: Any, scale: Any, zero: Any, stored: Stored) -> Sizes:
    """The format of a block-quantised weight; zero points are bytes, or stored as weights."""
    zero_dtype = "uint8" if str(zero.ty.dtype) == "uint8" else stored(zero)
    return {
        **{name: int(attrs[name]) for name in ("bits", "block")},
        **{"scale_dtype": stored(scale), "zeros": bool(int(attrs["zeros"])), "zero_dtype": zero_dtype},
    }


def _linear_nbits(call: Any, stored: Stored) -> Sizes:
    x, _, scale, zero = call.args
    _, n, k = sizes(x)
    table = {"table": str(call.attrs["table"])} if "table" in call.attrs else {}
    found = _quantised(call.attrs, scale, zero, stored)
    return {"n": n, "k": k, "columns": int(call.attrs["columns"]), **found, **table}


def _linear_int(call: Any, stored: Stored) -> Sizes:
    codes, _, _, _, scale, zero = call.args
    return {
        "n": sizes(codes)[1],
        "k": int(call.attrs["k"]),
        "columns": int(call.attrs["columns"]),
        **_quantised(call.attrs, scale, zero, stored),
    }


def _quantise_rows(call: Any, stored: Stored) -> Sizes:
    return {**_n_width(call, stored), "dtype": str(call.attrs["dtype"])}


def _table(attrs: Any, ids: Any) -> Sizes:
    return {"n": sizes(ids)[1], "vocab": int(attrs["vocab"]), "width": int(attrs["width"])}


def _embedding(call: Any, stored: Stored) -> Sizes:
    w, ids = call.args
    return {**_table(call.attrs, ids), "dtype": stored(w)}


def _embedding_nbits(call: Any, stored: Stored) -> Sizes:
    _, scale, zero, ids = call.args
    return {**_table(call.attrs, ids), **_quantised(call.attrs, scale, zero, stored)}


def _learned_positions(call: Any, stored: Stored) -> Sizes:
    w, ids, _ = call.args
    rows, width = sizes(w)
    return {"n": sizes(ids)[1], "rows": rows, "width": width, "dtype": stored(w)}


def _rope(call: Any, stored: Stored) -> Sizes:
    x, cos, _, _ = call.args
    _, n, width = sizes(x)
    heads, rotary_dim = int(call.attrs["heads"]), int(call.attrs["rotary_dim"])
    pairs = {"rotary_dim": rotary_dim, "interleaved": bool(int(call.attrs["interleaved"]))}
    return {"n": n, "heads": heads, "head_dim": width // heads, "context": sizes(cos)[0], **pairs}


def _attention(call: Any, stored: Stored) -> Sizes:
    q, values = call.args[0], call.args[4]
    slots, kv_heads, context, head_dim = sizes(values)
    scores = {key: float(call.attrs[key]) for key in ("scale", "softcap")}
    seen = {"context": context, "window": int(call.attrs["window"])}
    heads = {"heads": int(call.attrs["heads"]), "kv_heads": kv_heads, "head_dim": head_dim}
    dtype = str(values.ty.dtype)
    dtype = dtype if dtype in KV_FORMATS else stored(values)
    cache = {} if dtype == DEFAULT_KV else {"cache": dtype}
    rows = {"slots": slots} if D.op_name(call) != "hsd.attention_cached" else {}
    slopes = D.attention_slopes(call.attrs)
    biased = {"slopes": slopes} if slopes else {}
    return {"n": sizes(q)[1], **rows, **heads, **seen, **scores, **cache, **biased}


def _argmax(call: Any, stored: Stored) -> Sizes:
    _, n, vocab = sizes(call.args[0])
    return {"n": n, "vocab": vocab}


def _take_columns(call: Any, stored: Stored) -> Sizes:
    return {**_n_width(call, stored), "start": int(call.attrs["start"]), "part": int(call.attrs["width"])}


def _join_columns(call: Any, stored: Stored) -> Sizes:
    return {**_n_width(call, stored), "other": sizes(call.args[1])[2]}


def _of_streams(more: str = "") -> Callable[[Any, Stored], Sizes]:
    """Sizes of a kernel on streams, with one more whole number of the operator's."""
    names = ("streams", more) if more else ("streams",)
    return lambda call, stored: {**_n_width(call, stored), **{name: int(call.attrs[name]) for name in names}}


def _with(*constants: str) -> Callable[[Any, Stored], Sizes]:
    """Sizes of an elementwise kernel with constants of the export."""
    return lambda call, stored: {**_n_width(call, stored), **{name: float(call.attrs[name]) for name in constants}}


OPERATORS = {
    "hsd.linear": Operator("linear", _linear, "linear_{n}_{k}_{columns}"),
    "hsd.linear_nbits": Operator("linear_nbits", _linear_nbits, "linear_{bits}bit_{n}_{k}_{columns}"),
    "hsd.linear_int": Operator("linear_int", _linear_int, "linear_int_{bits}bit_{n}_{k}_{columns}"),
    "hsd.quantise_rows": Operator("quantise_rows", _quantise_rows, "quantise_rows_{dtype}_{n}_{width}"),
    "hsd.embedding": Operator("embedding", _embedding, "embedding_{n}"),
    "hsd.embedding_nbits": Operator("embedding_nbits", _embedding_nbits, "embedding_{bits}bit_{n}"),
    "hsd.rms_norm": Operator("rms_norm", _rms_norm, "rms_norm_{n}_{groups}"),
    "hsd.add_rms_norm": Operator("add_rms_norm", _n_width_eps, "add_rms_norm_{n}"),
    "hsd.layer_norm": Operator("layer_norm", _layer_norm, "layer_norm_{n}_{groups}"),
    "hsd.silu_mul": Operator("silu_mul", _n_width, "silu_mul_{n}_{width}"),
    "hsd.gelu_mul": Operator("gelu_mul", _gelu, "gelu_mul_{n}_{width}"),
    "hsd.gelu": Operator("gelu", _gelu, "gelu_{n}_{width}"),
    "hsd.relu": Operator("relu", _n_width, "relu_{n}_{width}"),
    "hsd.squared_relu": Operator("squared_relu", _n_width, "squared_relu_{n}_{width}"),
    "hsd.xielu": Operator("xielu", _with("positive", "negative", "beta"), "xielu_{n}_{width}"),
    "hsd.clip": Operator("clip", _with("least", "most"), "clip_{n}_{width}"),
    "hsd.tanh": Operator("tanh", _n_width, "tanh_{n}_{width}"),
    "hsd.scale": Operator("scale", _with("factor"), "scale_{n}_{width}"),
    "hsd.learned_positions": Operator("learned_positions", _learned_positions, "learned_positions_{n}"),
    "hsd.rope": Operator("rope", _rope, "rope_{n}_{heads}"),
    "hsd.attention_cached": Operator("attention_cached", _attention, "attention_{n}", places=(-1, 3, 4)),
    "hsd.learned_positions_rows": Operator("learned_positions_rows", _learned_positions, "learned_positions_rows_{n}"),
    "hsd.rope_rows": Operator("rope_rows", _rope, "rope_rows_{n}_{heads}"),
    "hsd.attention_in_slot": Operator("attention_in_slot", _attention, "attention_{n}", places=(-1, 3, 4)),
    "hsd.attention_rows": Operator("attention_rows", _attention, "attention_rows_{n}", places=(-1, 3, 4)),
    "hsd.argmax": Operator("argmax", _argmax, "argmax_{n}"),
    "hsd.take_row": Operator("take_row", _n_width, "take_row_{n}"),
    "hsd.take_columns": Operator("take_columns", _take_columns, "take_columns_{n}"),
    "hsd.join_columns": Operator("join_columns", _join_columns, "join_columns_{n}_{width}"),
    "hsd.scale_columns": Operator("scale_columns", _n_width, "scale_columns_{n}_{width}"),
    "hsd.altup_predict": Operator("altup_predict", _of_streams(), "altup_predict_{n}"),
    "hsd.altup_correct": Operator("altup_correct", _of_streams("active"), "altup_correct_{n}"),
    "hsd.altup_add": Operator("altup_add", _of_streams("first"), "altup_add_{n}"),
    "hsd.match_magnitude": Operator("match_magnitude", _with("least"), "match_magnitude_{n}"),
    "hsd.gaussian_top_k": Operator("gaussian_top_k", _with("deviations"), "gaussian_top_k_{n}_{width}"),
    "relax.add": Operator("add", _n_width, "add_{n}_{width}"),
}
_ADD_BIAS = Operator("add_bias", _n_width, "add_{n}_{width}")


def operator_of(call: Any) -> Operator:
    """The entry of a call; what is added decides between two of them."""
    name = D.op_name(call)
    return _ADD_BIAS if name == "relax.add" and call.args[1].ty.ndim != 3 else OPERATORS[name]


@tvm.transform.module_pass(opt_level=0, name="Lower")
class Lower:
    """Replace every operator of the dialect by a call of a backend's kernel, cut as `tile` says.

    With `kernels`, those that were compiled before are declarations; else every kernel is whole.
    """

    def __init__(self, backend: Backend, tile: Any, kernels: Kernels | None = None):
        self.backend, self.tile, self.kernels = backend, tile, kernels

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Lower all functions; asserts that no operator of ours is left: it would run its slow reference.

        Raises:
            UserError: the backend has no kernel for an operator, or for the type of a weight.
        """
        lowered = relax.transform.LegalizeOps(dict.fromkeys(OPERATORS, self._lower))(mod)
        left = operators_left(lowered)
        assert not left, f"operators without a kernel of backend {self.backend.name}: {left}"
        return lowered

    def _lower(self, bb: Any, call: Any) -> Any:
        operator, backend = operator_of(call), self.backend
        found = operator.sizes(call, lambda weight: backend.weight_type(str(weight.ty.dtype)))
        makers = backend.makers()
        if operator.maker not in makers:
            raise UserError(f"{backend.title()} has no kernel {operator.maker}: use --place {HOST}")
        name = operator.name.format_map(found)
        if self.kernels is None:
            func = made(makers[operator.maker], self.tile, found)
        else:
            name, func = self.kernels.make(operator.maker, name, self.tile, found)
        return _call(bb, func, name, call, operator.places)


def _call(bb: Any, func: Any, name: str, call: Any, places: tuple[int, ...]) -> Any:
    """The outputs of a call of a PrimFunc, without scratch; the module gets it once, equal PrimFuncs are shared."""
    outputs = list(call.ty.fields) if isinstance(call.ty, relax.TupleType) else [call.ty]
    new = len([p for p in places if p < 0]) if places else len(outputs)
    scratch = [D.tensor([int(d) for d in p.ty.shape], str(p.ty.dtype)) for p in func.params[len(call.args) + new :]]
    kernel, types = bb.add_func(func.without_attr("global_symbol"), name), [*outputs, *scratch]
    if places:
        whole = relax.op.call_tir_inplace(kernel, list(call.args), [*places, *(-1 for _ in scratch)], types)
    else:
        whole = relax.call_tir(kernel, list(call.args), out_ty=types if len(types) > 1 else types[0])
    return first_outputs(bb, whole, len(outputs)) if scratch else whole
