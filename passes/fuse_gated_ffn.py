"""mul(mul(g, sigmoid(g)), u) -> hsd.silu_mul(g, u): the gate of Llama's FFN as one operator (Shazeer 2020, SwiGLU)."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.dpl import is_op, rewrite_call, wildcard

from passes import dialect as D


@tvm.transform.module_pass(opt_level=0, name="FuseGatedFfn")
class FuseGatedFfn:
    """Fuse the gate of every gated FFN; either order of the two products is recognised."""

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Rewrite the function `main`."""
        g, u = wildcard(), wildcard()
        silu = is_op("relax.multiply")(g, is_op("relax.sigmoid")(g)) | is_op("relax.multiply")(
            is_op("relax.sigmoid")(g), g
        )
        gated = is_op("relax.multiply")(silu, u) | is_op("relax.multiply")(u, silu)
        out = tvm.IRModule(mod.functions)
        out["main"] = rewrite_call(gated, lambda call, found: D.silu_mul(found[g], found[u]), mod["main"])
        return relax.transform.DeadCodeElimination()(out)
