"""The gate of a gated FFN as one operator (Shazeer 2020, GLU variants).

mul(mul(g, sigmoid(g)), u) -> hsd.silu_mul(g, u)      Llama and most others
mul(hsd.gelu(g), u)        -> hsd.gelu_mul(g, u)      Gemma
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.dpl import is_op, rewrite_call, wildcard

from passes.relax import dialect as D
from passes.relax.rebuild import each_function


@tvm.transform.module_pass(opt_level=0, name="FuseGatedFfn")
class FuseGatedFfn:
    """Fuse the gate of every gated FFN; either order of the two factors is recognised."""

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Rewrite all functions."""
        g, u = wildcard(), wildcard()
        silu = is_op("relax.multiply")(g, is_op("relax.sigmoid")(g)) | is_op("relax.multiply")(
            is_op("relax.sigmoid")(g), g
        )
        gated = is_op("relax.multiply")(silu, u) | is_op("relax.multiply")(u, silu)
        activated = is_op("hsd.gelu")(g)
        gelu_gated = is_op("relax.multiply")(activated, u) | is_op("relax.multiply")(u, activated)

        def gelu_mul(call: Any, found: Any) -> Any:
            value = found[activated]
            return D.gelu_mul(found[g], found[u], **dict(value.attrs.items()))

        def rewrite(func: Any) -> Any:
            func = rewrite_call(gated, lambda call, found: D.silu_mul(found[g], found[u]), func)
            func = rewrite_call(gelu_gated, gelu_mul, func).with_attr("global_symbol", "main")
            alone = tvm.IRModule({"main": func})
            return relax.transform.DeadCodeElimination()(alone)["main"]

        return each_function(mod, rewrite)
