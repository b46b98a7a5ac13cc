"""A segment whose rows are of several sequences: each has a slot of the KV caches and a position of its own.

    f(x, pos, keys, values, ..., weights)          -> (y, ...)    caches of one sequence, rows at pos, pos + 1, ...
becomes
    f(x, slot, pos, keys, values, ..., weights)    -> (y, ...)    caches of `slots`, row t at pos[t] of slot[t]

Everything but attention, rope and learned positions is row-wise already. Where a slot's part of a cache is no tensor of
its own (targets/backend.py), the steps of one sequence are told the slot, too:

    f(x, slot, pos, keys, values, ..., weights)    -> (y, ...)    caches of `slots`, rows at pos, pos + 1, ... of slot
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from passes.relax import dialect as D
from passes.relax.rebuild import rebuild


def rows_of_sequences(func: Any, slots: int) -> Any:
    """The segment `func` (after CacheInPlace) for `slots` sequences."""
    rows = D.shape_of(func.params[0])[1]
    slot, pos = (relax.Var(name, D.tensor((rows,), "int64")) for name in ("slot", "pos"))
    at = next(i for i, p in enumerate(func.params) if p.name == "pos")
    caches = {p: _cache(p, slots) for p in func.params if p.name.startswith("cache.")}

    def at_positions(bb: Any, call: Any) -> Any:
        return relax.Call(f"{D.op_name(call)}_rows", [*call.args[:-1], pos], call.attrs)

    def attention(bb: Any, call: Any) -> Any:
        return relax.Call("hsd.attention_rows", [*call.args[:-1], slot, pos], call.attrs)

    table = {
        "hsd.rope": at_positions,
        "hsd.learned_positions": at_positions,
        "hsd.attention_cached": attention,
    }
    params = [*func.params[:at], slot, pos, *func.params[at + 1 :]]
    return rebuild(func, [caches.get(p, p) for p in params], {**caches, func.params[at]: pos}, table)


def in_a_slot(func: Any, slots: int) -> Any:
    """The segment `func` (after CacheInPlace) for one of `slots` sequences."""
    slot = relax.Var("slot", tvm.ir.PrimType("int64"))
    at = next(i for i, p in enumerate(func.params) if p.name == "pos")
    caches = {p: _cache(p, slots) for p in func.params if p.name.startswith("cache.")}

    def attention(bb: Any, call: Any) -> Any:
        *rest, pos = call.args
        return relax.Call("hsd.attention_in_slot", [*rest, slot, pos], call.attrs)

    params = [*func.params[:at], slot, *func.params[at:]]
    return rebuild(func, [caches.get(p, p) for p in params], caches, {"hsd.attention_cached": attention})


def _cache(param: Any, slots: int) -> Any:
    """The cache of all slots in place of one sequence's."""
    _, *shape = D.shape_of(param)
    return relax.Var(param.name, D.tensor((slots, *shape), str(param.ty.dtype)))
