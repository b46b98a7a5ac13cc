"""Attention over the in-place KV cache: one PrimFunc of three kernels appends the new rows and attends.

    append   keys and values of the new rows go into the caches
    scores   one work-item per head, block of 32 keys and up to 8 rows: softmax inside the block, its peak and its sum
    weigh    one work-item per head, 4 values and up to 4 rows: the blocks, each rescaled to the highest peak, times V;
             the values of 4 keys are loaded before they are used, so that it waits once for them

Rows of one work-item share each read of keys and values; heads that share them are neighbours. Blocks begin at
multiples of 32 keys and a row sees keys 0 .. pos + t (or the last `window` of them) only, so its bits depend neither on
n nor on stale rows. Many rows over a long context take several passes, so that the scratch memory stays below
SCRATCH_BYTES. The caches are laid out as kv_cache.py says. Rows of several sequences, which each have a slot and a
position of their own, are one a work-item. The caller checks that positions are within the context.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from targets.kernels.vector_math import lanes_exp, lanes_tanh, of_head
from targets.kv_format import KV_FORMATS
from targets.opencl.kernels import storage
from targets.opencl.kernels.kv_cache import kv_cache
from targets.opencl.tile import GpuTile

KEYS = 32
SCRATCH_BYTES = 8 << 20
SLOT = 5  # among the parameters


def key_blocks(context: int) -> int:
    """Blocks of keys that a context has."""
    return -(-context // KEYS)


def scratch_rows(n: int, heads: int, context: int) -> int:
    """Rows of one pass: as many of n as have their weights in SCRATCH_BYTES, in equal passes; at least one."""
    most = max(1, SCRATCH_BYTES // (4 * heads * context))
    return -(-n // -(-n // most))


def attention_of(
    tile: GpuTile,
    n: int,
    slots: int,
    apart: bool,
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    scale: float,
    window: int,
    softcap: float,
    cache: str,
    slopes: tuple[float, ...],
) -> Any:
    """The PrimFunc of attention.py's makers; rows are `apart` where each has a slot and a position of its own."""
    size, lanes, share = tile.group, tile.lanes, heads // kv_heads
    tiles, blocks, per_block = context // lanes, key_blocks(context), KEYS // lanes
    reach = window if window > 0 else context
    rows_per_pass = scratch_rows(n, heads, context)
    together = 1 if apart else rows_per_pass
    wide, out_rows, near = tile.weighted_sums(together, head_dim)
    quads = head_dim // wide
    biased = len(slopes) > 0
    cap = softcap if softcap > 0 else 1.0
    stored, key_rows = kv_cache(lanes, head_dim, cache), head_dim + KV_FORMATS[cache].scale_rows
    append, vector, key_scales, value_scales = stored.append, stored.vector, stored.key_scales, stored.value_scales
    passes = -(-n // rows_per_pass)
    score_rows = tile.shared_rows(together, lanes)
    steps = tile.unroll(head_dim, score_rows, lanes, beside=score_rows)
    score_tiles, out_tiles = -(-rows_per_pass // score_rows), -(-rows_per_pass // out_rows)
    new_items, score_items, out_items = n * kv_heads * head_dim, heads * blocks, heads * quads
    new_groups, score_groups, out_groups = (-(-i // size) for i in (new_items, score_items, out_items))

    slot_type, pos_type = (T.Buffer((n,), "int64") if apart else T.int64 for _ in range(2))

    def of(slot: Any, t: Any) -> Any:
        """The slot of row t; a cast of a parameter would keep vector loads from being seen as such."""
        if apart:
            return T.Cast("int32", slot[t])
        return T.call_pure_extern("int32", "convert_int", slot) if slots > 1 else 0

    def last(pos: Any, t: Any) -> Any:
        """The last key that row t sees."""
        return T.Cast("int32", pos[t]) if apart else T.Cast("int32", pos) + t

    def new(slot: Any, pos: Any, t: Any) -> Any:
        """Whether row t is not the one before it."""
        before = T.max(t - 1, 0)
        return T.Or(t == 0, T.Or(slot[t] != slot[before], pos[t] != pos[before]))

    def first(pos: Any, t: Any) -> Any:
        """The first key that row t sees."""
        return T.max(last(pos, t) + 1 - reach, 0)

    def hidden(pos: Any, t: Any, key: Any) -> Any:
        """Whether row t does not see a key."""
        return T.Or(key > last(pos, t), key < first(pos, t))

    def nth(pos: Any, t: Any, b: Any) -> Any:
        """Block b, counted from the first that row t sees."""
        return first(pos, t) // KEYS + b

    def row(p: Any, r: Any, count: int, m: Any) -> Any:
        """Row m of tile r, `count` rows each, in pass p; where no rows are left, the last one again."""
        return T.min(p * rows_per_pass + T.min(r * count + m, rows_per_pass - 1), n - 1)

    def start(pos: Any, p: Any, r: Any, b: Any) -> Any:
        """The first key of that block of the first row of tile r in pass p; it may be hidden."""
        return nth(pos, row(p, r, out_rows, 0), b) * KEYS

    def of_scores(slot: Any, p: Any, r: Any) -> Any:
        """The slot of the rows of tile r in pass p."""
        return of(slot, row(p, r, score_rows, 0))

    def of_sums(slot: Any, p: Any, r: Any) -> Any:
        """The same of the tiles of the last kernel."""
        return of(slot, row(p, r, out_rows, 0))

    @T.prim_func(s_tir=True)
    def attention(
        q: T.Buffer((1, n, heads * head_dim), "float32"),
        k: T.Buffer((1, n, kv_heads * head_dim), "float32"),
        v: T.Buffer((1, n, kv_heads * head_dim), "float32"),
        keys: T.Buffer((slots, kv_heads, tiles, key_rows, lanes), storage(cache)),
        values: T.Buffer((slots, kv_heads, context, head_dim), storage(cache)),
        slot: slot_type,
        pos: pos_type,
        y: T.Buffer((1, n, heads * head_dim), "float32"),
        weights: T.Buffer((rows_per_pass, heads, context), "float32"),
        block: T.Buffer((rows_per_pass, heads, blocks, 2), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(new_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("append"):
                    vm = T.axis.spatial(n, (g * size + t) // (kv_heads * head_dim))
                    vh = T.axis.spatial(kv_heads, (g * size + t) // head_dim % kv_heads)
                    vd = T.axis.spatial(head_dim, (g * size + t) % head_dim)
                    T.where(g * size + t < new_items)
                    if apart:
                        if new(slot, pos, vm):
                            append(k, v, keys, values, of(slot, vm), vm, vh, vd, last(pos, vm))
                    else:
                        append(k, v, keys, values, of(slot, vm), vm, vh, vd, last(pos, vm))
        for p in T.serial(passes):
            for g in T.thread_binding(score_groups, thread="blockIdx.y"):
                for r in T.thread_binding(score_tiles, thread="blockIdx.x"):
                    for t in T.thread_binding(size, thread="threadIdx.x"):
                        with T.sblock("scores"):
                            vp = T.axis.spatial(passes, p)
                            vr = T.axis.spatial(score_tiles, r)
                            vb = T.axis.spatial(blocks, (g * size + t) // heads)
                            vh = T.axis.spatial(heads, (g * size + t) % heads)
                            T.where(g * size + t < score_items)
                            dot = T.sblock_alloc_buffer((score_rows, lanes), "float32", scope="local")
                            kk = T.sblock_alloc_buffer((steps, lanes), "float32", scope="local")
                            qq = T.sblock_alloc_buffer((steps,), "float32", scope="local")
                            peak = T.sblock_alloc_buffer((score_rows,), "float32", scope="local")
                            total = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                            if vb * KEYS <= last(pos, row(vp, vr, score_rows, score_rows - 1)) and (
                                vb * KEYS + KEYS > first(pos, row(vp, vr, score_rows, 0))
                            ):
                                for m in T.unroll(score_rows):
                                    peak[m] = T.float32(-3e38)
                                for s in T.serial(T.min(per_block, tiles - vb * per_block)):
                                    for m in T.unroll(score_rows):
                                        for i in T.vectorized(lanes):
                                            dot[m, i] = T.float32(0)
                                    for d in T.serial(head_dim // steps):
                                        for e in T.unroll(steps):
                                            kk[e, T.Ramp(0, 1, lanes)] = vector(
                                                *(lanes, keys, of_scores(slot, vp, vr), vh // share),
                                                *(vb * per_block + s, d * steps + e, 0),
                                            )
                                        for m in T.unroll(score_rows):
                                            for e in T.vectorized(steps):
                                                qq[e] = q[0, row(vp, vr, score_rows, m), vh * head_dim + d * steps + e]
                                            for e in T.unroll(steps):
                                                for i in T.vectorized(lanes):
                                                    dot[m, i] = T.fma(qq[e], kk[e, i], dot[m, i])
                                    for m in T.unroll(score_rows):
                                        for i in T.vectorized(lanes):
                                            dot[m, i] = dot[m, i] * T.float32(scale)
                                        if key_scales is not None:
                                            dot[m, T.Ramp(0, 1, lanes)] = dot[m, T.Ramp(0, 1, lanes)] * key_scales(
                                                keys,
                                                of_scores(slot, vp, vr),
                                                vh // share,
                                                vb * per_block + s,
                                            )
                                        if softcap > 0:
                                            for i in T.vectorized(lanes):
                                                dot[m, i] = T.float32(cap) * lanes_tanh(dot[m, i] * T.float32(1 / cap))
                                        if biased:
                                            for i in T.vectorized(lanes):
                                                dot[m, i] = T.fma(
                                                    of_head(slopes, vh),
                                                    T.Cast(
                                                        "float32",
                                                        vb * KEYS + s * lanes - last(pos, row(vp, vr, score_rows, m)),
                                                    )
                                                    + T.Cast("float32", i),
                                                    dot[m, i],
                                                )
                                        for i in T.unroll(lanes):
                                            if hidden(pos, row(vp, vr, score_rows, m), vb * KEYS + s * lanes + i):
                                                dot[m, i] = T.float32(-3e38)
                                            peak[m] = T.max(peak[m], dot[m, i])
                                        if vr * score_rows + m < rows_per_pass:
                                            for i in T.vectorized(lanes):
                                                weights[vr * score_rows + m, vh, vb * KEYS + s * lanes + i] = dot[m, i]
                                for m in T.unroll(score_rows):
                                    if vr * score_rows + m < rows_per_pass:
                                        for i in T.vectorized(lanes):
                                            total[i] = T.float32(0)
                                        for s in T.serial(T.min(per_block, tiles - vb * per_block)):
                                            for i in T.vectorized(lanes):
                                                dot[m, i] = lanes_exp(
                                                    weights[vr * score_rows + m, vh, vb * KEYS + s * lanes + i]
                                                    - peak[m]
                                                )
                                            for i in T.unroll(lanes):
                                                if hidden(pos, row(vp, vr, score_rows, m), vb * KEYS + s * lanes + i):
                                                    dot[m, i] = T.float32(0)
                                            for i in T.vectorized(lanes):
                                                total[i] = total[i] + dot[m, i]
                                            if value_scales is not None:
                                                dot[m, T.Ramp(0, 1, lanes)] = dot[
                                                    m, T.Ramp(0, 1, lanes)
                                                ] * value_scales(
                                                    keys,
                                                    of_scores(slot, vp, vr),
                                                    vh // share,
                                                    vb * per_block + s,
                                                )
                                            for i in T.vectorized(lanes):
                                                weights[vr * score_rows + m, vh, vb * KEYS + s * lanes + i] = dot[m, i]
                                        block[vr * score_rows + m, vh, vb, 0] = peak[m]
                                        peak[m] = T.float32(0)
                                        for i in T.unroll(lanes):
                                            peak[m] = peak[m] + total[i]
                                        block[vr * score_rows + m, vh, vb, 1] = peak[m]
            for g in T.thread_binding(out_groups, thread="blockIdx.y"):
                for r in T.thread_binding(out_tiles, thread="blockIdx.x"):
                    for t in T.thread_binding(size, thread="threadIdx.x"):
                        with T.sblock("weigh"):
                            vp = T.axis.spatial(passes, p)
                            vr = T.axis.spatial(out_tiles, r)
                            vh = T.axis.spatial(heads, (g * size + t) // quads)
                            vd = T.axis.spatial(quads, (g * size + t) % quads)
                            T.where(g * size + t < out_items)
                            part = T.sblock_alloc_buffer((out_rows, wide), "float32", scope="local")
                            out = T.sblock_alloc_buffer((out_rows, wide), "float32", scope="local")
                            vv = T.sblock_alloc_buffer((near, wide), "float32", scope="local")
                            top = T.sblock_alloc_buffer((out_rows,), "float32", scope="local")
                            total = T.sblock_alloc_buffer((out_rows,), "float32", scope="local")
                            factor = T.sblock_alloc_buffer((1,), "float32", scope="local")
                            for m in T.unroll(out_rows):
                                top[m] = T.float32(-3e38)
                                total[m] = T.float32(0)
                                for i in T.vectorized(wide):
                                    out[m, i] = T.float32(0)
                                for b in T.serial(
                                    last(pos, row(vp, vr, out_rows, m)) // KEYS
                                    + 1
                                    - first(pos, row(vp, vr, out_rows, m)) // KEYS
                                ):
                                    top[m] = T.max(
                                        top[m],
                                        block[
                                            T.min(vr * out_rows + m, rows_per_pass - 1),
                                            vh,
                                            nth(pos, row(vp, vr, out_rows, m), b),
                                            0,
                                        ],
                                    )
                            for b in T.serial(
                                last(pos, row(vp, vr, out_rows, out_rows - 1)) // KEYS
                                + 1
                                - first(pos, row(vp, vr, out_rows, 0)) // KEYS
                            ):
                                for m in T.unroll(out_rows):
                                    for i in T.vectorized(wide):
                                        part[m, i] = T.float32(0)
                                for s in T.serial(
                                    (
                                        T.min(
                                            last(pos, row(vp, vr, out_rows, out_rows - 1)) + 1 - start(pos, vp, vr, b),
                                            KEYS,
                                        )
                                        + near
                                        - 1
                                    )
                                    // near
                                ):
                                    for e in T.unroll(near):
                                        vv[e, T.Ramp(0, 1, wide) if wide > 1 else 0] = vector(
                                            *(wide, values, of_sums(slot, vp, vr), vh // share),
                                            *(start(pos, vp, vr, b) + s * near + e, vd * wide),
                                        )
                                    if (
                                        start(pos, vp, vr, b) + s * near + near - 1
                                        <= last(pos, row(vp, vr, out_rows, 0))
                                    ) and (
                                        start(pos, vp, vr, b) + s * near
                                        >= first(pos, row(vp, vr, out_rows, out_rows - 1))
                                    ):
                                        for m in T.unroll(out_rows):
                                            for e in T.unroll(near):
                                                for i in T.vectorized(wide):
                                                    part[m, i] = T.fma(
                                                        weights[
                                                            T.min(vr * out_rows + m, rows_per_pass - 1),
                                                            vh,
                                                            start(pos, vp, vr, b) + s * near + e,
                                                        ],
                                                        vv[e, i],
                                                        part[m, i],
                                                    )
                                    else:
                                        for m in T.unroll(out_rows):
                                            for e in T.unroll(near):
                                                if T.Not(
                                                    hidden(
                                                        pos,
                                                        row(vp, vr, out_rows, m),
                                                        start(pos, vp, vr, b) + s * near + e,
                                                    )
                                                ):
                                                    for i in T.vectorized(wide):
                                                        part[m, i] = T.fma(
                                                            weights[
                                                                T.min(vr * out_rows + m, rows_per_pass - 1),
                                                                vh,
                                                                start(pos, vp, vr, b) + s * near + e,
                                                            ],
                                                            vv[e, i],
                                                            part[m, i],
                                                        )
                                for m in T.unroll(out_rows):
                                    if nth(pos, row(vp, vr, out_rows, 0), b) >= first(
                                        pos, row(vp, vr, out_rows, m)
                                    ) // KEYS and (
                                        nth(pos, row(vp, vr, out_rows, 0), b)
                                        <= last(pos, row(vp, vr, out_rows, m)) // KEYS
                                    ):
                                        factor[0] = lanes_exp(
                                            block[
                                                T.min(vr * out_rows + m, rows_per_pass - 1),
                                                vh,
                                                nth(pos, row(vp, vr, out_rows, 0), b),
                                                0,
                                            ]
                                            - top[m]
                                        )
                                        total[m] = T.fma(
                                            factor[0],
                                            block[
                                                T.min(vr * out_rows + m, rows_per_pass - 1),
                                                vh,
                                                nth(pos, row(vp, vr, out_rows, 0), b),
                                                1,
                                            ],
                                            total[m],
                                        )
                                        for i in T.vectorized(wide):
                                            out[m, i] = T.fma(factor[0], part[m, i], out[m, i])
                            for m in T.unroll(out_rows):
                                if vr * out_rows + m < rows_per_pass and vp * rows_per_pass + vr * out_rows + m < n:
                                    for i in T.vectorized(wide):
                                        y[0, vp * rows_per_pass + vr * out_rows + m, vh * head_dim + vd * wide + i] = (
                                            out[m, i] / total[m]
                                        )

    return attention
