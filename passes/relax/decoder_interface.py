"""What a compiled decoder takes and gives beside tokens, logits and caches: the position, and the greedy choice.

    main(ids, past_k, past_v, ..., weights...)      -> (logits, present_k, present_v, ...)
becomes
    main(ids, pos, past_k, past_v, ..., weights...) -> (logits, choice, present_k, present_v, ...)

Positions were the length of the past; as a parameter they are known to parts of a model that see no cache, too.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from passes.relax import dialect as D
from passes.relax.rebuild import rebuild


@tvm.transform.module_pass(opt_level=0, name="DecoderInterface")
class DecoderInterface:
    """Give `main` the parameter `pos` behind the ids and the output `argmax(logits)` behind the logits."""

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Rewrite the function `main`."""
        func = mod["main"]
        pos = relax.Var("pos", tvm.ir.PrimType("int64"))

        def rope(bb: Any, call: Any) -> Any:
            return relax.Call("hsd.rope", [*call.args[:3], pos], call.attrs)

        def learned_positions(bb: Any, call: Any) -> Any:
            return relax.Call("hsd.learned_positions", [*call.args[:2], pos], call.attrs)

        def with_choice(bb: Any, body: Any) -> Any:
            logits, *presents = body.fields
            return relax.Tuple([logits, bb.emit(D.argmax(logits)), *presents])

        table = {"hsd.rope": rope, "hsd.learned_positions": learned_positions}
        params = [func.params[0], pos, *func.params[1:]]
        return tvm.IRModule({"main": rebuild(func, params, table=table, outputs=with_choice)})
