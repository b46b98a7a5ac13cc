"""Entry points by width: one function per number of new tokens, all over the same caches and weights.

    step_<n>(ids[1, n], pos, caches, weights)         -> (logits[1, n, vocab], ids[1, n])   the greedy choice beside
    prefill_<n>(ids[1, n], pos, row, caches, weights) -> (logits[1, 1, vocab], ids[1, 1])   head on row `row` only

Widths are bound, so all storage is planned ahead; symbolic widths would allocate at every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax

from passes import dialect as D
from passes.rebuild import bindings, rebuild

_HEADS = ("hsd.linear", "hsd.linear_nbits")


def step_name(n: int) -> str:
    """Name of the entry point for n new tokens with all logits."""
    return f"step_{n}"


def prefill_name(n: int) -> str:
    """Name of the entry point for a prompt chunk of n tokens with one row of logits."""
    return f"prefill_{n}"


@tvm.transform.module_pass(opt_level=0, name="MakeEntries")
class MakeEntries:
    """Specialise `main` to the widths of `steps` and to one prefill chunk."""

    def __init__(self, steps: Sequence[int], prefill: int):
        self.steps, self.prefill = tuple(steps), prefill

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Replace `main` by the entry points."""
        with_choice = rebuild(mod["main"], outputs=_with_choice)
        out = {}
        for n in self.steps:
            out[tvm.ir.GlobalVar(step_name(n))] = _at_width(with_choice, n, step_name(n))
        chunk = _at_width(_one_row(with_choice), self.prefill, prefill_name(self.prefill))
        out[tvm.ir.GlobalVar(prefill_name(self.prefill))] = chunk
        return tvm.IRModule(out)


def _with_choice(bb: Any, logits: Any) -> Any:
    return relax.Tuple([logits, bb.emit(D.argmax(logits))])


def _at_width(func: Any, n: int, name: str) -> Any:
    bound = relax.transform.BindSymbolicVars({"n": n}, "main")(tvm.IRModule({"main": func}))
    return relax.utils.copy_with_new_vars(bound["main"]).with_attr("global_symbol", name)


def _one_row(func: Any) -> Any:
    """The head (the last linear) reads row `row` of its input only."""
    row = relax.Var("row", tvm.ir.PrimType("int64"))
    linears = [b for b in bindings(func) if D.op_name(b.value) in _HEADS]
    left = len(linears)

    def head(bb: Any, call: Any) -> Any:
        nonlocal left
        left -= 1
        if left:
            return call
        x = bb.emit(D.take_row(call.args[0], row))
        return relax.Call(call.op, [x, *call.args[1:]], call.attrs)

    params = [*func.params[:2], row, *func.params[2:]]
    return rebuild(func, params, table=dict.fromkeys(_HEADS, head))
