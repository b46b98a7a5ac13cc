"""What a chunk of a prompt needs: of all rows the keys and values, of one row at most what follows.

    f(x, pos, caches, weights)      -> (y, ...)
becomes
    f(x, pos, row, caches, weights) -> (y of row `row`, ...)    one_row: of the last chunk, one token has a successor
    f(x, pos, caches, weights)      -> (o,)                     fill: of a chunk before it, none; o is not read

All operators are row-wise but attention, so what no attention reads is computed for one row, or not at all: the head,
and most of the last layer. A row has the bits that it has in a whole step.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from passes.relax import dialect as D
from passes.relax.rebuild import bindings, rebuild_bindings

_ATTENTION = "hsd.attention_cached"


def one_row(func: Any) -> Any:
    """The segment `func` (after CacheInPlace) that chooses, its results those of row `row`."""
    row, x = relax.Var("row", tvm.ir.PrimType("int64")), func.params[0]
    every = _read_by_attention(func)
    first = [b for b in bindings(func) if b.var in every]
    rest = [b for b in bindings(func) if b.var not in every]
    rows = every if str(x.ty.dtype) == "int64" else {*every, x}  # whole rows; token ids are read by tables alone
    taken = [v for v in dict.fromkeys(v for b in rest for v in _operands(b.value)) if v in rows]
    cuts = [relax.VarBinding(v, D.take_row(v, row)) for v in taken]  # from here on the variable is the row
    at = 1 + next(i for i, p in enumerate(func.params) if p.name == "pos")
    params = [*func.params[:at], row, *func.params[at:]]
    return rebuild_bindings([*first, *cuts, *rest], func.body.body, params)


def fill(func: Any) -> Any:
    """The segment `func` (after CacheInPlace) for its caches alone."""
    attentions = {b.var for b in bindings(func) if D.op_name(b.value) == _ATTENTION}
    made = [b for b in bindings(func) if isinstance(b.value, relax.TupleGetItem) and b.value.tuple_value in attentions]
    return rebuild_bindings(bindings(func), relax.Tuple([[b.var for b in made if b.value.index == 0][-1]]), func.params)


def _read_by_attention(func: Any) -> set[Any]:
    """The attentions, what they depend on, and what looks up tokens: variables that the function binds."""
    maker = {b.var: b.value for b in bindings(func)}
    found = set[Any]()
    open_ends = [b.var for b in bindings(func) if D.op_name(b.value) == _ATTENTION or func.params[0] in _ids(b.value)]
    while open_ends:
        var = open_ends.pop()
        if var in maker and var not in found:
            found.add(var)
            open_ends += _operands(maker[var])
    parts = [b.var for b in bindings(func) if isinstance(b.value, relax.TupleGetItem) and b.value.tuple_value in found]
    return found | set(parts)


def _operands(value: Any) -> list[Any]:
    """Variables that a bound value reads."""
    if isinstance(value, relax.TupleGetItem):
        return [value.tuple_value]
    read = value.args if isinstance(value, relax.Call) else value.fields if isinstance(value, relax.Tuple) else [value]
    return [v for v in read if isinstance(v, relax.Var)]


def _ids(value: Any) -> list[Any]:
    """Token ids that a bound value reads."""
    return [v for v in _operands(value) if isinstance(v.ty, relax.TensorType) and str(v.ty.dtype) == "int64"]
