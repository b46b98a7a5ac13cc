"""float16 parameters become uint16 of the same bits: OpenCL without cl_khr_fp16 knows no half values.

    f(w: float16[...]) -> f(w: uint16[...])

Kernels read them with vload_half, which every OpenCL has. The operators of the dialect take any weight type, so
nothing else changes.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from passes.relax import dialect as D
from passes.relax.rebuild import each_function, rebuild


@tvm.transform.module_pass(opt_level=0, name="HalfAsBits")
class HalfAsBits:
    """Retype the float16 parameters of every function."""

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Rewrite all functions."""
        return each_function(mod, _rewrite)


def _rewrite(func: Any) -> Any:
    replaced = {
        p: relax.Var(p.name, D.tensor(D.shape_of(p), "uint16"))
        for p in func.params
        if isinstance(p.ty, relax.TensorType) and str(p.ty.dtype) == "float16"
    }
    return rebuild(func, [replaced.get(p, p) for p in func.params], replaced)
