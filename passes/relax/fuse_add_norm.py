"""s = add(x, r); rms_norm(s, w) -> hsd.add_rms_norm(x, r, w) = (s, norm): the residual is read and written once."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from passes.relax import dialect as D
from passes.relax.rebuild import bindings, each_function, rebuild


@tvm.transform.module_pass(opt_level=0, name="FuseAddNorm")
class FuseAddNorm:
    """Fuse a residual addition with the normalisation that reads it first.

    Left alone: additions of a bias (rank 1), norms over several groups of a row, norms of anything but a sum.
    """

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Rewrite all functions."""
        return each_function(mod, _rewrite)


def _rewrite(func: Any) -> Any:
    sums = {b.var: b.value for b in bindings(func) if _is_residual(b.value)}
    norm_of = {}
    for b in bindings(func):
        if D.op_name(b.value) == "hsd.rms_norm" and int(b.value.attrs["groups"]) == 1:
            source = b.value.args[0]
            if source in sums and source not in norm_of:
                norm_of[source] = b
    fused: dict[Any, Any] = {}

    def add(bb: Any, call: Any) -> Any:
        norm = pending.pop(0)
        if norm is None:
            return call
        both = bb.emit(D.add_rms_norm(*call.args, norm.value.args[1], eps=float(norm.value.attrs["eps"])))
        total = bb.emit(relax.TupleGetItem(both, 0))
        fused[total] = bb.emit(relax.TupleGetItem(both, 1))
        return total

    def rms_norm(bb: Any, call: Any) -> Any:
        return fused.pop(call.args[0], call)

    pending = [norm_of.get(b.var) for b in bindings(func) if D.op_name(b.value) == "relax.add"]
    return rebuild(func, table={"relax.add": add, "hsd.rms_norm": rms_norm})


def _is_residual(value: Any) -> bool:
    if D.op_name(value) != "relax.add":
        return False
    a, b = value.args
    return a.ty.ndim == 3 and b.ty.ndim == 3
