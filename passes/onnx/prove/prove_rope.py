"""Proves that a piece rotates each head by its position, and reads the tables off it by running it.

A rotation is linear, so unit vectors show which elements pair up (halves or neighbours) and how many rotate; a
vector of ones and zeros gives cos and sin of every position, with whatever scaling the exporter put in. Random
vectors at positions in another order then check the whole: a table that depends on the length (LongRoPE) fails there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.onnx.pass_context import Declined, Importing
from passes.onnx.prove.context_limit import limit_context
from passes.onnx.prove.run_subgraph import Piece, default_input, shaped
from passes.onnx.shapes import Point

_CHUNK = 256  # positions run at a time
_LENGTH_DEPENDENT = "the rotation of a position depends on the other positions beside it (LongRoPE, dynamic scaling)"
_SHORTER = "choose a --context within the length before the scaling sets in"


@dataclass(frozen=True)
class Rope:
    """A rotation by position.

    Attributes:
        rotary_dim: elements of a head that rotate (the first ones).
        interleaved: neighbours pair up instead of halves.
        cos, sin: float32 [context, rotary_dim / 2].
        positions: "input": position_ids; "past": past length + 0, 1, ...; "mask": tokens before, by attention_mask.
    """

    rotary_dim: int
    interleaved: bool
    cos: np.ndarray
    sin: np.ndarray
    positions: str

    def rotate(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """X [batch, n, heads, head_dim] rotated by positions [batch, n] (ONNX RotaryEmbedding, opset 23)."""
        cos, sin = self.cos[positions][:, :, None], self.sin[positions][:, :, None]
        first, second = self.pairs()
        y = x.copy()
        y[..., first] = x[..., first] * cos - x[..., second] * sin
        y[..., second] = x[..., first] * sin + x[..., second] * cos
        return y

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the first and second elements of the pairs."""
        return _pairs(self.rotary_dim, self.interleaved)


class Rotation:
    """The piece between a projection's result and the rotated, transposed query or key."""

    def __init__(self, imp: Importing, source: Any, target: Any, heads: int, layout: tuple[str, str]) -> None:
        """`layout`: how source and target lie: "bsd" [B,S,H*D], "bshd", "bhsd" or "nsd" [B*H,S,D]."""
        self.imp, self.heads, self.head_dim = imp, heads, imp.facts.head_dim
        self._source, self._layout = source, layout
        self.piece = Piece(imp, [source], target)
        self.batch = imp.facts.batch or 1

    def run(self, x: np.ndarray, past: int, **inputs: np.ndarray) -> np.ndarray:
        """X [B, n, heads, head_dim] -> the same shape, past tokens being before it."""
        if past and self.imp.facts.no_cache:
            return self._after_zeros(x, past, inputs)
        b, n, h, d = x.shape
        given = {"bsd": x.reshape(b, n, h * d), "bshd": x}[self._layout[0]]
        y = self.piece.run(Point(b, n, past), {self._source: np.ascontiguousarray(given)}, **inputs)
        if self._layout[1] in ("bhsd", "nsd"):
            return shaped(y, (b, h, n, d)).transpose(0, 2, 1, 3)
        return shaped(y, (b, n, h, d))

    def _after_zeros(self, x: np.ndarray, past: int, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """What a graph without cache computes for x when `past` other tokens stand before it in the text."""
        before = ((0, 0), (past, 0))
        if "position_ids" in inputs:
            inputs = {**inputs, "position_ids": np.pad(inputs["position_ids"], before)}
        return self.run(np.pad(x, (*before, (0, 0), (0, 0))), 0, **inputs)[:, past:]

    def at_positions(self, x: np.ndarray, first: int) -> np.ndarray:
        """Rotated as positions first, first + 1, ..."""
        return self.run(x, 0 if "position_ids" in self.piece.uses else first, **self._positions(x, first))

    def _positions(self, x: np.ndarray, first: int) -> dict[str, np.ndarray]:
        if "position_ids" not in self.piece.uses:
            return {}
        row = np.arange(first, first + x.shape[1], dtype=np.int64)
        return {"position_ids": np.broadcast_to(row, x.shape[:2])}

    def random(self, n: int, seed: int = 0) -> np.ndarray:
        """Random input for n positions."""
        shape = (self.batch, n, self.heads, self.head_dim)
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def prove_rope(rotation: Rotation) -> Rope | None:
    """The rotation's tables for all positions of the context, or None if it does not depend on the position.

    Raises:
        Declined: not a rotation, or its tables depend on more than the position.
    """
    context = rotation.imp.context
    _check_length(rotation)
    x = rotation.random(1)
    if np.array_equal(rotation.at_positions(x, 0), rotation.at_positions(x, context - 1)):
        return None
    rotary_dim, interleaved = _structure(rotation, context - 1)
    first, second = _pairs(rotary_dim, interleaved)
    cos, sin = [], []
    for start in range(0, context, _CHUNK):
        x = np.zeros_like(rotation.random(min(_CHUNK, context - start)))
        x[..., first] = 1.0
        y = rotation.at_positions(x, start)[0, :, 0]
        cos.append(y[:, first])
        sin.append(y[:, second])
    rope = Rope(rotary_dim, interleaved, np.concatenate(cos), np.concatenate(sin), _positions(rotation))
    check_rope(rotation, rope)
    return rope


def _check_length(rotation: Rotation) -> None:
    """Find the length beyond which the longest position decides how all are rotated, where one can ask for it.

    Raises:
        Declined: it lies within the context; the message has it.
    """
    if "position_ids" not in rotation.piece.uses or rotation.imp.context < 3:
        return
    x = rotation.random(2)

    def second(length: int) -> np.ndarray:
        """Position 1 rotated in a text of that many tokens."""
        positions = np.broadcast_to(np.array([length - 1, 1], np.int64), x.shape[:2])
        return rotation.run(x, 0, position_ids=positions)[:, 1]

    low, high, alone = 2, rotation.imp.context, second(2)
    if np.array_equal(second(high), alone):
        return
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if np.array_equal(second(middle), alone) else (low, middle)
    limit_context(rotation.imp, low)
    raise Declined(f"{_LENGTH_DEPENDENT} beyond {low} tokens; compile with --context {low} or less")


def check_rope(rotation: Rotation, rope: Rope) -> float:
    """Prove that a piece rotates by `rope`, up to a constant factor, which is returned.

    Raises:
        Declined: it does not.
    """
    context, rng = rotation.imp.context, np.random.default_rng(1)
    factors = []
    for start in sorted({0, max(0, context - _CHUNK), int(rng.integers(context)) // 2}):
        x = rotation.random(min(_CHUNK - 1, context - start), seed=start)
        positions = np.broadcast_to(start + np.arange(x.shape[1]), x.shape[:2])
        if "position_ids" in rotation.piece.uses:
            positions = np.array(rng.permuted(positions, axis=1))
            if start:
                positions[:, 0] = 0
            y = rotation.run(x, 3, position_ids=positions)
        else:
            y = rotation.run(x, start)
        factors.append(_factor(y, rope.rotate(x, positions), f"{_LENGTH_DEPENDENT}; {_SHORTER}"))
    for bit in range(context.bit_length()):  # one token alone: a table that depends on the longest position shows
        position = min(1 << bit, context - 1)
        x = rotation.random(1, seed=bit)
        expected = rope.rotate(x, np.full(x.shape[:2], position))
        _factor(rotation.at_positions(x, position), expected, f"{_LENGTH_DEPENDENT}; {_SHORTER}")
    if _positions(rotation, rope) != rope.positions:
        raise Declined("query and key take their positions from different inputs")
    return factors[0]


def check_unrotated(rotation: Rotation) -> float:
    """The constant factor of a piece that only moves elements.

    Raises:
        Declined: it does more.
    """
    x = rotation.random(3)
    return _factor(rotation.run(x, 5), x, "it does more than move and scale elements")


def _factor(actual: np.ndarray, expected: np.ndarray, otherwise: str) -> float:
    factor = float((actual * expected).sum(dtype=np.float64) / (expected * expected).sum(dtype=np.float64))
    if not np.abs(actual - factor * expected).max() <= 1e-5 * max(np.abs(actual).max(), 1e-30):
        raise Declined(otherwise)
    return 1.0 if abs(factor - 1.0) < 1e-6 else factor


def _pairs(rotary_dim: int, interleaved: bool) -> tuple[np.ndarray, np.ndarray]:
    half = np.arange(rotary_dim // 2)
    return (2 * half, 2 * half + 1) if interleaved else (half, half + rotary_dim // 2)


def _structure(rotation: Rotation, position: int) -> tuple[int, bool]:
    """(rotary_dim, interleaved), from the image of each unit vector at one position."""
    dim = rotation.head_dim
    matrix = np.zeros((dim, dim), np.float32)
    for i in range(dim):
        x = np.zeros_like(rotation.random(1))
        x[..., i] = 1.0
        matrix[:, i] = rotation.at_positions(x, position)[0, 0, 0]
    off = matrix * (1 - np.eye(dim, dtype=np.float32))
    rotary_dim = int(np.flatnonzero(np.any(off != 0, axis=0)).max(initial=-1)) + 1
    for interleaved in (False, True):
        first, second = _pairs(rotary_dim, interleaved)
        expected = np.zeros((dim, dim), bool)
        expected[first, second] = expected[second, first] = True
        if rotary_dim and rotary_dim % 2 == 0 and ((off != 0) == expected).all():
            if np.array_equal(off[second, first], -off[first, second]):
                return rotary_dim, interleaved
    raise Declined("it pairs the elements of a head neither by halves nor by neighbours")


def _positions(rotation: Rotation, rope: Rope | None = None) -> str:
    """Where the piece takes its positions from."""
    uses, imp = rotation.piece.uses, rotation.imp
    if "position_ids" in uses:
        if rope is None:
            return "input"
        x, positions = rotation.random(3), np.array([[min(2, imp.context - 1), 0, imp.context - 1]], np.int64)
        positions = np.broadcast_to(positions, x.shape[:2])
        inputs = {"position_ids": positions}
        if "attention_mask" in uses:
            inputs["attention_mask"] = np.array(default_input(imp, "attention_mask", Point(rotation.batch, 3, 5)))
            inputs["attention_mask"][:, 0] = 0
        expected = rope.rotate(x, positions)
        _factor(rotation.run(x, 5, **inputs), expected, "the positions are not position_ids alone")
        return "input"
    if "attention_mask" not in uses:
        return "past"
    x = rotation.random(3)
    mask = np.array(default_input(imp, "attention_mask", Point(rotation.batch, 3, 5)))
    unpadded = rotation.run(x, 5, attention_mask=mask)
    mask[:, :2] = 0
    y = rotation.run(x, 5, attention_mask=mask)
    if np.array_equal(y, unpadded):  # only its length is read
        return "past"
    if rope is None:
        return "mask"
    counted = np.broadcast_to(np.arange(3, 6), x.shape[:2])
    _factor(y, rope.rotate(x, counted), "the positions do not count the tokens of attention_mask")
    return "mask"
