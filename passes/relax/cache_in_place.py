"""KV caches become buffers written in place: past and present tensors -> one buffer of `context` rows per cache.

    f(x, pos, past_k, past_v, ..., weights) -> (y, ..., present_k, present_v, ...)
becomes
    f(x, pos, keys, values, ..., weights)   -> (y, ...)

This is the last pass that changes what is computed where: before it caches are values and every stock Relax pass is
safe; after it an attention call both appends and attends, and only its output may be used (facts of TVM 0.27: an
in-place write whose result is unused is deleted).
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from passes.relax import dialect as D
from passes.relax.rebuild import each_function, rebuild
from targets.backend import Tile
from targets.kv_format import DEFAULT_KV, KV_FORMATS


def key_shape(tile: Tile, kv_heads: int, head_dim: int, context: int, kv: str = DEFAULT_KV) -> tuple[int, ...]:
    """Shape of a key cache: tiles of `lanes` keys, keys in lanes, and scales where the type has them."""
    return (1, kv_heads, context // tile.lanes, head_dim + KV_FORMATS[kv].scale_rows, tile.lanes)


def value_shape(kv_heads: int, head_dim: int, context: int) -> tuple[int, ...]:
    """Shape of a value cache: one row per position."""
    return (1, kv_heads, context, head_dim)


@tvm.transform.module_pass(opt_level=0, name="CacheInPlace")
class CacheInPlace:
    """Give every segment cache buffers of `dtype` for `context` tokens, and drop its cache outputs."""

    def __init__(self, tile: Tile, context: int, dtype: str = DEFAULT_KV):
        self.tile, self.context, self.dtype = tile, context, dtype

    def transform_module(self, mod: Any, ctx: Any) -> Any:
        """Rewrite all functions."""
        return each_function(mod, self._rewrite)

    def _rewrite(self, func: Any) -> Any:
        pos = next(p for p in func.params if p.name == "pos")
        replaced = {}
        for p in func.params:
            if not p.name.startswith("past_key_values."):
                continue
            _, heads, _, dim = D.shape_of(p)
            name = p.name.replace("past_key_values", "cache")
            shape = (
                key_shape(self.tile, int(heads), int(dim), self.context, self.dtype)
                if name.endswith(".key")
                else value_shape(int(heads), int(dim), self.context)
            )
            replaced[p] = relax.Var(name, D.tensor(shape, self.dtype))

        def attention(bb: Any, call: Any) -> Any:
            return relax.Call("hsd.attention_cached", [*call.args, pos], call.attrs)

        def without_presents(bb: Any, body: Any) -> Any:
            return relax.Tuple(body.fields[: int(func.attrs["hsd.outputs"])])

        params = [replaced.get(p, p) for p in func.params]
        return rebuild(func, params, replaced, {"hsd.attention": attention}, without_presents)
