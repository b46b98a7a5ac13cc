"""What lowering for any processor needs: static sizes, calls of kernels, and the proof that nothing was left."""

from __future__ import annotations

from typing import Any

from tvm import relax

from passes import dialect as D

_PLUMBING = {"relax.call_tir", "relax.call_tir_inplace"}


def sizes(expr: Any) -> list[int]:
    """Dimensions of an expression, all of them known."""
    return [int(d) for d in D.shape_of(expr)]


def kernel_call(bb: Any, func: Any, name: str, args: list[Any], out_ty: Any) -> Any:
    """A call of a PrimFunc added to the module; structurally equal functions are shared."""
    return relax.call_tir(bb.add_func(func.without_attr("global_symbol"), name), args, out_ty=out_ty)


def first_outputs(bb: Any, call: Any, count: int) -> Any:
    """The first `count` outputs of a call whose others are scratch: one value, or a tuple of them."""
    whole = bb.emit(call)
    parts = [bb.emit(relax.TupleGetItem(whole, i)) for i in range(count)]
    return parts[0] if count == 1 else relax.Tuple(parts)


def operators_left(mod: Any) -> list[str]:
    """Names of operators of ours, and of stock tensor operators, that functions of a module still call."""
    found: set[str] = set()
    for func in mod.functions.values():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func.body, lambda e: found.add(D.op_name(e)))
    return sorted(n for n in found if n.startswith("hsd.") or (n.startswith("relax.") and n not in _PLUMBING))
