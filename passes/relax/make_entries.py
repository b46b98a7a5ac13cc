"""Entry points by width: one function per segment and number of new tokens, all over the same caches and weights.

    step_<n>(ids[1, n], pos, caches, weights)         -> (logits[1, n, vocab], ids[1, n])   the greedy choice beside
    prefill_<n>(ids[1, n], pos, row, caches, weights) -> (logits[1, 1, vocab], ids[1, 1])   those of row `row` only
    fill_<n>(ids[1, n], pos, caches, weights)         -> (o,)                               caches only
    rows_<n>(ids[1, n], slot[n], pos[n], caches of all slots, weights)                      as step_<n>, each row in its
                                                                                            slot (rows_of_sequences.py)

Where caches hold several sequences and a slot's part of them is no tensor of its own, the first three have caches of
all slots and a parameter `slot` before `pos`.

The entries of a segment s0 are s0_step_<n> and so on; `row` is a parameter of the segment with the head only, and only
the last segment with layers has a fill_<n>: those before it are run by prefill_<n> in either case. Widths are bound, so
all storage is planned ahead; symbolic widths would allocate at every call.

First layers that are in the library of their whole decoder, to draft for it, have entries of their own there:
exit_<k>_step_<n> and so on, after k layers (`exit_name`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
from tvm import relax

from passes.place.partition import WHOLE
from passes.relax import dialect as D
from passes.relax.prompt_entries import fill, one_row
from passes.relax.rebuild import bindings
from passes.relax.rows_of_sequences import in_a_slot, rows_of_sequences


def exit_name(layers: int) -> str:
    """Name of the segment that leaves the decoder after so many layers."""
    return f"exit_{layers}"


def step_name(n: int, segment: str = WHOLE) -> str:
    """Name of the entry point for n new tokens with all logits."""
    return f"step_{n}" if segment == WHOLE else f"{segment}_step_{n}"


def prefill_name(n: int, segment: str = WHOLE) -> str:
    """Name of the entry point for a prompt chunk of n tokens with one row of logits."""
    return f"prefill_{n}" if segment == WHOLE else f"{segment}_prefill_{n}"


def fill_name(n: int, segment: str = WHOLE) -> str:
    """Name of the entry point for a prompt chunk of n tokens without logits."""
    return f"fill_{n}" if segment == WHOLE else f"{segment}_fill_{n}"


def rows_name(n: int, segment: str = WHOLE) -> str:
    """Name of the entry point for n rows of several sequences."""
    return f"rows_{n}" if segment == WHOLE else f"{segment}_rows_{n}"


@tvm.transform.module_pass(opt_level=0, name="MakeEntries")
class MakeEntries:
    """Specialise every segment to the widths of `steps` and of `rows`, and to the `prefills` of prompt chunks.

    `fills` are the segments that have the last layer of a model. `told_slot`: steps of one sequence are told its slot.
    """

    def __init__(
        self,
        steps: Sequence[int],
        prefills: Sequence[int],
        slots: int = 1,
        rows: Sequence[int] = (),
        fills: Sequence[str] = (WHOLE,),
        told_slot: bool = False,
    ):
        self.steps, self.prefills, self.slots, self.rows = tuple(steps), tuple(prefills), slots, tuple(rows)
        self.fills, self.told_slot = fills, told_slot

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Replace the segments by their entry points."""
        out = {}
        for var, func in mod.functions.items():
            segment = str(var.name_hint)
            chooses = any(D.op_name(b.value) == "hsd.argmax" for b in bindings(func))
            entries = [(step_name(n, segment), func, n) for n in self.steps]
            cut = one_row(func) if chooses else func
            entries += [(prefill_name(n, segment), cut, n) for n in self.prefills]
            if segment in self.fills:
                filled = fill(func)
                entries += [(fill_name(n, segment), filled, n) for n in self.prefills]
            if self.told_slot:
                entries = [(name, in_a_slot(body, self.slots), n) for name, body, n in entries]
            if self.rows:
                of_sequences = rows_of_sequences(func, self.slots)
                entries += [(rows_name(n, segment), of_sequences, n) for n in self.rows]
            for name, body, n in entries:
                out[tvm.ir.GlobalVar(name)] = _at_width(body, n, name)
        return tvm.IRModule(out)


def _at_width(func: Any, n: int, name: str) -> Any:
    alone = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    bound = relax.transform.BindSymbolicVars({"n": n}, "main")(alone)["main"]
    return relax.utils.copy_with_new_vars(bound).with_attr("global_symbol", name)
