"""Rewriting a straight-line Relax function by building it again: types are inferred anew from the new parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm
from tvm import relax

from passes.relax.dialect import op_name

Rewrite = Callable[[Any, Any], Any]  # (block builder, call with new arguments) -> expression


def bindings(func: Any) -> list[Any]:
    """All bindings of a straight-line function, in order."""
    return [b for block in func.body.blocks for b in block.bindings]


def rebuild(
    func: Any,
    params: Sequence[Any] | None = None,
    replaced: Mapping[Any, Any] | None = None,
    table: Mapping[str, Rewrite] | None = None,
    outputs: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """The same function with other parameters, rewritten calls or other outputs.

    Args:
        func: straight-line Relax function.
        params: the new parameters; the old ones when absent.
        replaced: old variable -> new expression.
        table: operator name -> rewrite of its calls.
        outputs: (block builder, new body) -> new output expression.

    Returns:
        A new relax.Function; bindings nothing reads any more are left out.
    """
    kept = list(params if params is not None else func.params)
    return rebuild_bindings(bindings(func), func.body.body, kept, replaced, table, outputs)


def rebuild_bindings(
    bound: Sequence[Any],
    result: Any,
    params: Sequence[Any],
    replaced: Mapping[Any, Any] | None = None,
    table: Mapping[str, Rewrite] | None = None,
    outputs: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """A function of `params` made of some bindings, rewritten as in `rebuild`, that returns `result`."""
    env: dict[Any, Any] = dict(replaced or {})
    table = table or {}
    bb = relax.BlockBuilder()

    def renew(e: Any) -> Any:
        if isinstance(e, relax.Var):
            return env.get(e, e)
        if isinstance(e, relax.Tuple):
            return relax.Tuple([renew(f) for f in e.fields])
        if isinstance(e, relax.TupleGetItem):
            base = renew(e.tuple_value)
            return base.fields[e.index] if isinstance(base, relax.Tuple) else relax.TupleGetItem(base, e.index)
        if isinstance(e, relax.Call):
            call = relax.Call(e.op, [renew(a) for a in e.args], e.attrs, e.ty_args)
            rewrite = table.get(op_name(call))
            return rewrite(bb, call) if rewrite else call
        return e

    with bb.function("main"):
        with bb.dataflow():
            for b in bound:
                value = renew(b.value)
                known = isinstance(value, (relax.Var, relax.Tuple))
                env[b.var] = value if known else bb.emit(value, b.var.name)
            body = renew(result)
            out = bb.emit_output(outputs(bb, body) if outputs else body)
        bb.emit_func_output(out, list(params))
    mod = relax.transform.DeadCodeElimination()(bb.get())
    return mod["main"]


def each_function(mod: Any, rewrite: Callable[[Any], Any]) -> Any:
    """A module with every Relax function rewritten, attributes and names kept."""
    out = tvm.IRModule(mod.functions)
    for var, func in mod.functions.items():
        if isinstance(func, relax.Function):
            attrs = dict(func.attrs.items()) if func.attrs else {}
            out[var] = rewrite(func).with_attr(attrs) if attrs else rewrite(func)
    return out
