"""Activations of block-quantised matrix multiplications become int8 codes: linear_nbits -> quantise_rows, linear_int.

    y = hsd.linear_nbits(x, q, scale, zero)  ->  c = hsd.quantise_rows(x); y = hsd.linear_int(c.0, c.1, c.2, q, ...)

Multiplications that read the same x share its codes. Weights for which the processor has no integer kernel stay as they
are. It runs on packed weights, whose layout both kernels read.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from passes.relax import dialect as D
from passes.relax.rebuild import each_function, rebuild
from targets.backend import Backend


@tvm.transform.module_pass(opt_level=0, name="QuantiseActivations")
class QuantiseActivations:
    """Rewrite all functions for a backend, whose kernels are cut as `tile` says."""

    def __init__(self, backend: Backend, tile: Any):
        self.backend, self.tile = backend, tile

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Rewrite all functions."""
        return each_function(mod, self._rewrite)

    def _rewrite(self, func: Any) -> Any:
        codes: dict[tuple[Any, str], list[Any]] = {}

        def linear(bb: Any, call: Any) -> Any:
            x, *weights = call.args
            if "table" in call.attrs:  # codes of a table are no integers
                return call
            bits, block, k = (int(call.attrs[name]) for name in ("bits", "block", "k"))
            stored = self.backend.activation_codes(self.tile, bits, block, k)
            if stored is None:
                return call
            step, dtype = stored
            if (x, dtype) not in codes:
                made = bb.emit(D.quantise_rows(x, step=step, dtype=dtype))
                codes[x, dtype] = [bb.emit(relax.TupleGetItem(made, i)) for i in range(3)]
            return D.linear_int(*codes[x, dtype], *weights, **dict(call.attrs.items()))

        return rebuild(func, table={"hsd.linear_nbits": linear})
