"""What TVM's virtual machine does between the kernels of a call, made shorter: in small models it takes most of a step.

After TVM's own pipeline an entry point makes a tensor for every value of every layer, a view of storage that is planned
for all of them, and drops it after its last use; at its start it compares the type of each argument. Here:

    - a view of the same storage, shape and type is made once in a call, and dropped after the last use;
    - arguments are not compared: each kernel compares those it is given, and what a library was compiled for is
      compared with the manifest and the weights when it is loaded (hetero_sd/runtime/model/library_facts.py);
    - tuples that nobody reads are not made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import tvm
from tvm import relax

_CHECKS = ("vm.builtin.check_tensor_info", "vm.builtin.check_prim_value_info", "vm.builtin.match_shape")


@tvm.transform.module_pass(opt_level=0, name="ShortenVmCode")
class ShortenVmCode:
    """The same for every Relax function of a module, after TVM's default pipeline; all shapes are static."""

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Rewrite all functions."""
        functions = {v: _shorter(f) if isinstance(f, relax.Function) else f for v, f in mod.functions.items()}
        return tvm.IRModule(functions, attrs=mod.attrs)


def pipeline() -> Any:
    """TVM's default pipeline, then ShortenVmCode."""
    return tvm.transform.Sequential([relax.get_pipeline("default"), ShortenVmCode()])


@relax.expr_functor.mutator
class _Replaced(relax.PyExprMutator):  # type: ignore[misc]
    """Reads other variables in place of some."""

    def __init__(self) -> None:
        super().__init__()
        self.by: dict[Any, Any] = {}

    def visit_var_(self, var: Any) -> Any:
        return self.by.get(var, var)


def _shorter(func: Any) -> Any:
    bound = [binding for block in func.body.blocks for binding in block.bindings]
    replaced, read = _Replaced(), set(_read(func))
    views: dict[tuple[Any, ...], Any] = {}  # (storage, offset, shape, type) -> the first variable
    first: dict[Any, Any] = {}  # every variable of a view -> the first
    drops: dict[Any, list[int]] = {}  # the first variable -> where they are dropped
    for i, binding in enumerate(bound):
        name = _name(binding.value)
        if name == "relax.vm.alloc_tensor":
            storage, *rest = binding.value.args
            first[binding.var] = views.setdefault((storage, *map(str, rest)), binding.var)
        elif name == "relax.vm.kill_object" and binding.value.args[0] in first:
            drops.setdefault(first[binding.value.args[0]], []).append(i)
    uses = Counter(first.values())
    replaced.by = {var: view for var, view in first.items() if var != view}

    def kept(i: int, binding: Any) -> bool:
        name = _name(binding.value)
        if name == "relax.vm.alloc_tensor":
            return bool(first[binding.var] == binding.var)
        if name == "relax.vm.kill_object" and binding.value.args[0] in first:
            view = first[binding.value.args[0]]
            return drops[view][-1] == i and len(drops[view]) == uses[view]  # else one of them is a result
        return name not in _CHECKS and not (isinstance(binding.value, relax.Tuple) and binding.var not in read)

    made = [relax.VarBinding(x.var, replaced.visit_expr(x.value)) for i, x in enumerate(bound) if kept(i, x)]
    body = relax.SeqExpr([relax.BindingBlock(made)], replaced.visit_expr(func.body.body))
    return relax.Function(func.params, body, func.ret_ty, func.is_pure, func.attrs)


def _name(value: Any) -> str:
    """Of the operator or the function that is called; empty where nothing is."""
    op = getattr(value, "op", None)
    return str(getattr(op, "name", None) or getattr(op, "global_symbol", ""))


def _read(func: Any) -> Iterator[Any]:
    """The variables that are read."""

    def inside(value: Any) -> Iterator[Any]:
        if isinstance(value, relax.Var):
            yield value
        elif isinstance(value, relax.TupleGetItem):
            yield from inside(value.tuple_value)
        elif isinstance(value, relax.Call | relax.Tuple):
            for part in value.args if isinstance(value, relax.Call) else value.fields:
                yield from inside(part)

    for block in func.body.blocks:
        for binding in block.bindings:
            yield from inside(binding.value)
    yield from inside(func.body.body)
