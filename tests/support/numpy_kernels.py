"""The kernels of the backend in numpy_backend.py: inputs, outputs, attributes; weights in panels, rows one by one.

A row is computed alone, so that its bits do not depend on how many are computed with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def linear(x: Array, w: Array, y: Array, columns: int) -> None:
    _multiply(x, _matrix(w, columns), y)


def linear_nbits(x: Array, q: Array, scale: Array, zero: Array, y: Array, *sizes: int) -> None:
    _multiply(x, _dequantised(q, scale, zero, *sizes), y)


def embedding(w: Array, ids: Array, y: Array, vocab: int) -> None:
    y[0] = _matrix(w, vocab)[:, ids[0]].T


def embedding_nbits(q: Array, scale: Array, zero: Array, ids: Array, y: Array, *sizes: int) -> None:
    y[0] = _dequantised(q, scale, zero, *sizes)[:, ids[0]].T


def rms_norm(x: Array, w: Array, y: Array, groups: int, eps: float) -> None:
    parts = x.reshape(x.shape[1], groups, -1)
    y[:] = (parts / np.sqrt((parts * parts).mean(-1, keepdims=True) + eps) * w).reshape(y.shape)


def add_rms_norm(x: Array, r: Array, w: Array, s: Array, y: Array, eps: float) -> None:
    s[:] = x + r
    rms_norm(s, w, y, 1, eps)


def add(a: Array, b: Array, y: Array) -> None:
    y[:] = a + b


def silu_mul(gate: Array, up: Array, y: Array) -> None:
    y[:] = gate / (1 + np.exp(-gate)) * up


def rope(x: Array, cos: Array, sin: Array, pos: int, y: Array, heads: int) -> None:
    n, half = x.shape[1], cos.shape[1]
    given, turned = x.reshape(n, heads, 2, half), y.reshape(n, heads, 2, half)
    c, s = cos[pos : pos + n, None], sin[pos : pos + n, None]
    turned[:, :, 0] = given[:, :, 0] * c - given[:, :, 1] * s
    turned[:, :, 1] = given[:, :, 1] * c + given[:, :, 0] * s


def attention_cached(
    *arrays: Any,
) -> None:
    q, k, v, keys, values, pos, y, heads, scale = arrays
    (_, kv_heads, context, dim), lanes, n = values.shape, keys.shape[-1], q.shape[1]
    for t in range(n):
        keys[0, :, (pos + t) // lanes, :, (pos + t) % lanes] = k[0, t].reshape(kv_heads, dim)
        values[0, :, pos + t] = v[0, t].reshape(kv_heads, dim)
    rows = keys[0].transpose(0, 1, 3, 2).reshape(kv_heads, context, dim)
    for t in range(n):
        seen = slice(pos + t + 1)
        for h in range(heads):
            kv, part = h * kv_heads // heads, slice(h * dim, (h + 1) * dim)
            score = rows[kv, seen] @ q[0, t, part] * np.float32(scale)
            p = np.exp(score - score.max())
            y[0, t, part] = p / p.sum() @ values[0, kv, seen]


def argmax(logits: Array, ids: Array, best: Array) -> None:
    best[:] = logits[0].max(-1)
    ids[0] = np.where(np.isfinite(logits[0]).all(-1), logits[0].argmax(-1), -1)


def take_row(x: Array, row: int, y: Array) -> None:
    y[0, 0] = x[0, row]


def take_columns(x: Array, y: Array, start: int) -> None:
    y[:] = x[..., start : start + y.shape[-1]]


def _multiply(x: Array, w: Array, y: Array) -> None:
    for i, row in enumerate(x[0]):
        y[0, i] = row @ w


def _matrix(panels: Array, columns: int) -> Array:
    """Panels [blocks, k, panel] as float32 [k, columns]."""
    return panels.transpose(1, 0, 2).reshape(panels.shape[1], -1)[:, :columns].astype(np.float32)


def _dequantised(q: Array, scale: Array, zero: Array, columns: int, bits: int, block: int, zeros: int) -> Array:
    """Panels of numbers of `bits`, scales and zero points of `block` of them, as float32 [k, columns]."""
    shifts = np.arange(32 // bits) % 4 * 8 + np.arange(32 // bits) // 4 * 4
    whole = q ^ np.uint32(0x80808080) if bits == 8 else q
    values = (whole[:, :, None] >> shifts[:, None].astype(np.uint32)) & np.uint32((1 << bits) - 1)
    numbers = _matrix(values.reshape(len(q), -1, q.shape[-1]), columns)
    of_row = np.arange(len(numbers)) // block
    zero_points = _matrix(zero, columns)[of_row] if zeros else np.float32(1 << (bits - 1))
    return (numbers - zero_points) * _matrix(scale, columns)[of_row]
