"""What lowering for any processor needs: static sizes, how kernels are called, and the proof that nothing was left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import relax

from passes.relax import dialect as D

_PLUMBING = {"relax.call_tir", "relax.call_tir_inplace"}


def sizes(expr: Any) -> list[int]:
    """Dimensions of an expression, all of them known."""
    return [int(d) for d in D.shape_of(expr)]


def first_outputs(bb: Any, call: Any, count: int) -> Any:
    """The first `count` outputs of a call whose others are scratch: one value, or a tuple of them."""
    whole = bb.emit(call)
    parts = [bb.emit(relax.TupleGetItem(whole, i)) for i in range(count)]
    return parts[0] if count == 1 else relax.Tuple(parts)


@dataclass(frozen=True)
class KernelUse:
    """How a lowered function uses one PrimFunc of its module.

    Attributes:
        name: the PrimFunc's.
        calls: how often it is called.
        outputs: how many of its last parameters the caller allocates.
        scratch: those of its parameters, by number, whose content is not read after the call.
    """

    name: str
    calls: int
    outputs: int
    scratch: tuple[int, ...]


def kernel_uses(func: Any) -> list[KernelUse]:
    """The PrimFuncs that a lowered function calls, in order of their first call."""
    calls: dict[str, int] = {}
    made: dict[str, tuple[list[int], Any]] = {}
    read: set[tuple[Any, int]] = set()

    def visit(expr: Any) -> None:
        if isinstance(expr, relax.TupleGetItem):
            read.add((expr.tuple_value, int(expr.index)))

    for block in func.body.blocks:
        for binding in block.bindings:
            visit(binding.value)
            if D.op_name(binding.value) not in _PLUMBING:
                continue
            name, new = str(binding.value.args[0].name_hint), _new_outputs(binding)
            calls[name] = calls.get(name, 0) + 1
            made.setdefault(name, (new, binding))
    uses = []
    for name, (new, binding) in made.items():
        first = len(binding.value.args[1].fields)
        several = isinstance(binding.var.ty, relax.TupleType)
        unread = [first + i for i, field in enumerate(new) if several and (binding.var, field) not in read]
        uses.append(KernelUse(name, calls[name], len(new), tuple(unread)))
    return uses


def _new_outputs(binding: Any) -> list[int]:
    """Fields of a call's result that the caller allocates; the others are arguments written in place."""
    count = len(binding.var.ty.fields) if isinstance(binding.var.ty, relax.TupleType) else 1
    places = getattr(binding.value.attrs, "inplace_indices", None)
    return [i for i in range(count) if places is None or int(places[i]) < 0]


def operators_left(mod: Any) -> list[str]:
    """Names of operators of ours, and of stock tensor operators, that functions of a module still call."""
    found: set[str] = set()
    for func in mod.functions.values():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func.body, lambda e: found.add(D.op_name(e)))
    return sorted(n for n in found if n.startswith("hsd.") or (n.startswith("relax.") and n not in _PLUMBING))
