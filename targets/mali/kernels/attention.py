"""Attention over the in-place KV cache: one PrimFunc of three kernels appends the new rows and attends.

    append   keys and values of the new rows go into the caches
    scores   one work-item per row, head and block of 32 keys: softmax inside the block, its peak and its sum
    weigh    one work-item per row, head and 4 values: the blocks, each rescaled to the highest peak, times V

Blocks begin at multiples of 32 keys and a row sees keys 0 .. pos + t (or the last `window` of them) only, so its
bits depend neither on n nor on stale rows. Caches: keys [kv heads, context / 4, head_dim, 4], values [kv heads,
context, head_dim]. The caller checks pos + n <= context.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm.script import tirx as T

from targets.cortex_a.kernels.vector_math import lanes_exp, lanes_tanh
from targets.mali.tile import GpuTile

KEYS = 32


def key_blocks(context: int) -> int:
    """Blocks of keys that a context has."""
    return -(-context // KEYS)


@functools.cache
def attention_cached(
    tile: GpuTile,
    n: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    context: int,
    scale: float,
    window: int,
    softcap: float,
) -> Any:
    """The PrimFunc (q, k, v, key cache, value cache, pos, y, weights[n, heads, context], block[n, heads, blocks, 2]).

    window 0 means none: row t sees key j iff j <= pos + t, and j > pos + t - window where there is one. softcap c
    > 0 replaces a score s by c * tanh(s / c). context must be a multiple of 4. The last two are scratch.
    """
    size, lanes, share = tile.group, tile.lanes, heads // kv_heads
    tiles, blocks, per_block = context // lanes, key_blocks(context), KEYS // lanes
    reach = window if window > 0 else context
    wide = tile.vector(head_dim)
    quads = head_dim // wide
    cap = softcap if softcap > 0 else 1.0
    new_items, score_items, out_items = n * kv_heads * head_dim, n * heads * blocks, n * heads * quads
    new_groups, score_groups, out_groups = (-(-i // size) for i in (new_items, score_items, out_items))

    def last(pos: Any, t: Any) -> Any:
        """The last key that row t sees."""
        return T.Cast("int32", pos) + t

    def first(pos: Any, t: Any) -> Any:
        """The first key that row t sees."""
        return T.max(last(pos, t) + 1 - reach, 0)

    @T.prim_func(s_tir=True)
    def attention_cached(
        q: T.Buffer((1, n, heads * head_dim), "float32"),
        k: T.Buffer((1, n, kv_heads * head_dim), "float32"),
        v: T.Buffer((1, n, kv_heads * head_dim), "float32"),
        keys: T.Buffer((1, kv_heads, tiles, head_dim, lanes), "float32"),
        values: T.Buffer((1, kv_heads, context, head_dim), "float32"),
        pos: T.int64,
        y: T.Buffer((1, n, heads * head_dim), "float32"),
        weights: T.Buffer((n, heads, context), "float32"),
        block: T.Buffer((n, heads, blocks, 2), "float32"),
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        for g in T.thread_binding(new_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("append"):
                    vm = T.axis.spatial(n, (g * size + t) // (kv_heads * head_dim))
                    vh = T.axis.spatial(kv_heads, (g * size + t) // head_dim % kv_heads)
                    vd = T.axis.spatial(head_dim, (g * size + t) % head_dim)
                    T.where(g * size + t < new_items)
                    keys[0, vh, last(pos, vm) // lanes, vd, last(pos, vm) % lanes] = k[0, vm, vh * head_dim + vd]
                    values[0, vh, last(pos, vm), vd] = v[0, vm, vh * head_dim + vd]
        for g in T.thread_binding(score_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("scores"):
                    vm = T.axis.spatial(n, (g * size + t) // (heads * blocks))
                    vh = T.axis.spatial(heads, (g * size + t) // blocks % heads)
                    vb = T.axis.spatial(blocks, (g * size + t) % blocks)
                    T.where(g * size + t < score_items)
                    dot = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                    peak = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                    total = T.sblock_alloc_buffer((lanes,), "float32", scope="local")
                    top = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    if vb * KEYS <= last(pos, vm) and vb * KEYS + KEYS > first(pos, vm):
                        for i in T.vectorized(lanes):
                            peak[i] = T.float32(-3e38)
                        for s in T.serial(T.min(per_block, tiles - vb * per_block)):
                            for i in T.vectorized(lanes):
                                dot[i] = T.float32(0)
                            for d in T.serial(head_dim):
                                for i in T.vectorized(lanes):
                                    dot[i] = T.fma(
                                        q[0, vm, vh * head_dim + d],
                                        keys[0, vh // share, vb * per_block + s, d, i],
                                        dot[i],
                                    )
                            for i in T.vectorized(lanes):
                                dot[i] = dot[i] * T.float32(scale)
                            if softcap > 0:
                                for i in T.vectorized(lanes):
                                    dot[i] = T.float32(cap) * lanes_tanh(dot[i] * T.float32(1.0 / cap))
                            for i in T.unroll(lanes):
                                if vb * KEYS + s * lanes + i > last(pos, vm) or vb * KEYS + s * lanes + i < first(
                                    pos, vm
                                ):
                                    dot[i] = T.float32(-3e38)
                            for i in T.vectorized(lanes):
                                peak[i] = T.max(peak[i], dot[i])
                            for i in T.vectorized(lanes):
                                weights[vm, vh, vb * KEYS + s * lanes + i] = dot[i]
                        top[0] = peak[0]
                        for i in T.unroll(lanes):
                            top[0] = T.max(top[0], peak[i])
                        for i in T.vectorized(lanes):
                            total[i] = T.float32(0)
                        for s in T.serial(T.min(per_block, tiles - vb * per_block)):
                            for i in T.vectorized(lanes):
                                dot[i] = lanes_exp(weights[vm, vh, vb * KEYS + s * lanes + i] - top[0])
                            for i in T.unroll(lanes):
                                if vb * KEYS + s * lanes + i > last(pos, vm) or vb * KEYS + s * lanes + i < first(
                                    pos, vm
                                ):
                                    dot[i] = T.float32(0)
                            for i in T.vectorized(lanes):
                                total[i] = total[i] + dot[i]
                            for i in T.vectorized(lanes):
                                weights[vm, vh, vb * KEYS + s * lanes + i] = dot[i]
                        block[vm, vh, vb, 0] = top[0]
                        top[0] = T.float32(0)
                        for i in T.unroll(lanes):
                            top[0] = top[0] + total[i]
                        block[vm, vh, vb, 1] = top[0]
        for g in T.thread_binding(out_groups, thread="blockIdx.x"):
            for t in T.thread_binding(size, thread="threadIdx.x"):
                with T.sblock("weigh"):
                    vm = T.axis.spatial(n, (g * size + t) // (heads * quads))
                    vh = T.axis.spatial(heads, (g * size + t) // quads % heads)
                    vd = T.axis.spatial(quads, (g * size + t) % quads)
                    T.where(g * size + t < out_items)
                    part = T.sblock_alloc_buffer((wide,), "float32", scope="local")
                    out = T.sblock_alloc_buffer((wide,), "float32", scope="local")
                    top = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    total = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    by = T.sblock_alloc_buffer((1,), "float32", scope="local")
                    top[0] = T.float32(-3e38)
                    total[0] = T.float32(0)
                    for i in T.vectorized(wide):
                        out[i] = T.float32(0)
                    for b in T.serial(last(pos, vm) // KEYS + 1 - first(pos, vm) // KEYS):
                        top[0] = T.max(top[0], block[vm, vh, first(pos, vm) // KEYS + b, 0])
                    for b in T.serial(last(pos, vm) // KEYS + 1 - first(pos, vm) // KEYS):
                        by[0] = lanes_exp(block[vm, vh, first(pos, vm) // KEYS + b, 0] - top[0])
                        total[0] = T.fma(by[0], block[vm, vh, first(pos, vm) // KEYS + b, 1], total[0])
                        for i in T.vectorized(wide):
                            part[i] = T.float32(0)
                        for s in T.serial(
                            T.min(last(pos, vm) + 1, (first(pos, vm) // KEYS + b + 1) * KEYS)
                            - T.max(first(pos, vm), (first(pos, vm) // KEYS + b) * KEYS)
                        ):
                            for i in T.vectorized(wide):
                                part[i] = T.fma(
                                    weights[vm, vh, T.max(first(pos, vm), (first(pos, vm) // KEYS + b) * KEYS) + s],
                                    values[
                                        0,
                                        vh // share,
                                        T.max(first(pos, vm), (first(pos, vm) // KEYS + b) * KEYS) + s,
                                        vd * wide + i,
                                    ],
                                    part[i],
                                )
                        for i in T.vectorized(wide):
                            out[i] = T.fma(by[0], part[i], out[i])
                    for i in T.vectorized(wide):
                        y[0, vm, vh * head_dim + vd * wide + i] = out[i] / total[0]

    return attention_cached
