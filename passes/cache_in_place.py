"""KV caches become buffers written in place: past and present tensors -> one buffer of `context` rows per cache.

    main(ids, past_k, past_v, ..., weights) -> (logits, present_k, present_v, ...)
becomes
    main(ids, pos, keys, values, ..., weights) -> logits

This is the last pass that changes what is computed where: before it caches are values and every stock Relax pass is
safe; after it an attention call both appends and attends, and only its output may be used (facts of TVM 0.27: an
in-place write whose result is unused is deleted).
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from passes import dialect as D
from passes.rebuild import rebuild
from targets.cortex_a.tile import CpuTile
from targets.mali.tile import GpuTile


def key_shape(tile: CpuTile | GpuTile, kv_heads: int, head_dim: int, context: int) -> tuple[int, ...]:
    """Shape of a key cache: tiles of `lanes` keys, keys in lanes."""
    return (1, kv_heads, context // tile.lanes, head_dim, tile.lanes)


def value_shape(kv_heads: int, head_dim: int, context: int) -> tuple[int, ...]:
    """Shape of a value cache: one row per position."""
    return (1, kv_heads, context, head_dim)


@tvm.transform.module_pass(opt_level=0, name="CacheInPlace")
class CacheInPlace:
    """Give `main` a position and cache buffers for `context` tokens, and drop its cache outputs."""

    def __init__(self, tile: CpuTile | GpuTile, context: int):
        self.tile, self.context = tile, context

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Rewrite the function `main`."""
        func = mod["main"]
        pos = relax.Var("pos", tvm.ir.PrimType("int64"))
        replaced, caches, others = {}, [], []
        for p in func.params:
            if not p.name.startswith("past_key_values."):
                others.append(p)
                continue
            _, heads, _, dim = D.shape_of(p)
            name = p.name.replace("past_key_values", "cache")
            shape = (
                key_shape(self.tile, int(heads), int(dim), self.context)
                if name.endswith(".key")
                else value_shape(int(heads), int(dim), self.context)
            )
            replaced[p] = relax.Var(name, D.tensor(shape))
            caches.append(replaced[p])

        def attention(bb: Any, call: Any) -> Any:
            return relax.Call("hsd.attention_cached", [*call.args, pos], call.attrs)

        def rope(bb: Any, call: Any) -> Any:
            return relax.Call("hsd.rope", [*call.args[:3], pos], call.attrs)

        def learned_positions(bb: Any, call: Any) -> Any:
            return relax.Call("hsd.learned_positions", [*call.args[:2], pos], call.attrs)

        ids, weights = others[0], others[1:]
        out = rebuild(
            func,
            [ids, pos, *caches, *weights],
            replaced,
            {"hsd.attention": attention, "hsd.rope": rope, "hsd.learned_positions": learned_positions},
            outputs=lambda bb, body: _first(bb, body),
        )
        return tvm.IRModule({"main": out})


def _first(bb: Any, body: Any) -> Any:
    return body.fields[0] if isinstance(body, relax.Tuple) else bb.emit(relax.TupleGetItem(body, 0))
