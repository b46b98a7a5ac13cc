"""The operators of one step of a decoder, counted: floating-point operations, bytes read and written.

A step processes n new tokens of each sequence after `past` tokens in its KV cache. Counts are of the arithmetic itself,
one read or write of each operand; what a kernel reads again because a cache is too small is the roofline's business.
A multiply-add counts two operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from costmodel.shape import F32, DecoderShape, Format, Layer, Product
from targets.errors import UserError

_BEND = 20.0  # operations of a sigmoid, a GELU or a tanh, counted as its exp and division are written


@dataclass(frozen=True)
class Traffic:
    """Bytes of one kind ("weights", "kv" or "activations") and storage type."""

    kind: str
    dtype: str
    read_bytes: float
    written_bytes: float = 0.0


@dataclass(frozen=True)
class Op:
    """One kernel call.

    Attributes:
        name: for example ``layers.3.gate``.
        kind: linear, attention, norm, rope, silu_mul, add, take, embedding or argmax.
        rows: rows computed together: new tokens times sequences.
        flops: floating-point operations.
        traffic: bytes by kind and dtype.
        parallel: equal parts of its parallel region; 0 runs on one thread.
        k, columns, format: of a linear; columns is the width of the row for the others.
        heads, kv_heads, head_dim, past, window, batch: of an attention.
    """

    name: str
    kind: str
    rows: int
    flops: float
    traffic: tuple[Traffic, ...]
    parallel: int = 0
    k: int = 0
    columns: int = 0
    format: Format = field(default_factory=Format)
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    past: int = 0
    window: int = 0
    batch: int = 1

    @property
    def read_bytes(self) -> float:
        """Bytes read, of all kinds."""
        return sum(t.read_bytes for t in self.traffic)

    @property
    def written_bytes(self) -> float:
        """Bytes written, of all kinds."""
        return sum(t.written_bytes for t in self.traffic)

    @cached_property
    def stream_bytes(self) -> float:
        """Weights and KV rows: what comes from DRAM unless a cache holds it."""
        return self.bytes_of("weights") + self.bytes_of("kv")

    @cached_property
    def activation_bytes(self) -> float:
        """Activations read and written."""
        return self.bytes_of("activations")

    def bytes_of(self, kind: str) -> float:
        """Bytes read and written of one kind."""
        return sum(t.read_bytes + t.written_bytes for t in self.traffic if t.kind == kind)


@dataclass(frozen=True)
class Totals:
    """Sums over operators: flops, and (kind, dtype) -> bytes."""

    flops: float
    read: dict[tuple[str, str], float]
    written: dict[tuple[str, str], float]

    @property
    def bytes(self) -> float:
        """All bytes read and written."""
        return sum(self.read.values()) + sum(self.written.values())


def totals(ops: Iterable[Op]) -> Totals:
    """Sum operators, bytes by kind and dtype."""
    flops = 0.0
    read: dict[tuple[str, str], float] = {}
    written: dict[tuple[str, str], float] = {}
    for op in ops:
        flops += op.flops
        for t in op.traffic:
            key = (t.kind, t.dtype)
            read[key] = read.get(key, 0.0) + t.read_bytes
            written[key] = written.get(key, 0.0) + t.written_bytes
    return Totals(flops, read, written)


def step_units(
    shape: DecoderShape, n: int, past: int, batch: int = 1, head_rows: int | None = None
) -> list[tuple[Op, ...]]:
    """The operators of each unit (embedding, layers, head) of a step.

    Args:
        shape: the decoder.
        n: new tokens of each sequence.
        past: tokens in the KV cache before them.
        batch: sequences; their rows share one read of the weights.
        head_rows: rows of logits of each sequence; None is n, a prompt chunk needs 1.

    Raises:
        UserError: n or batch below 1, past below 0.
    """
    if n < 1 or batch < 1 or past < 0:
        raise UserError(f"a step has n >= 1, batch >= 1, past >= 0; this one has {n}, {batch}, {past}")
    rows = n * batch
    made: dict[Layer, tuple[Op, ...]] = {}
    units = [_embedding_ops(shape, rows)]
    for layer in shape.layers:
        if layer not in made:
            made[layer] = tuple(_layer_ops(shape, layer, n, past, batch))
        units.append(made[layer])
    units.append(tuple(_head_ops(shape, rows, (n if head_rows is None else head_rows) * batch)))
    return units


def step_ops(shape: DecoderShape, n: int, past: int, batch: int = 1, head_rows: int | None = None) -> list[Op]:
    """The operators of a step in order, named by their layer; see `step_units`."""
    named = []
    for i, unit in enumerate(step_units(shape, n, past, batch, head_rows)):
        prefix = f"layers.{i - 1}." if 0 < i <= len(shape.layers) else ""
        named += [_renamed(op, prefix) for op in unit]
    return named


def _renamed(op: Op, prefix: str) -> Op:
    return replace(op, name=prefix + op.name) if prefix else op


def _activations(read: float, written: float) -> Traffic:
    return Traffic("activations", "float32", F32 * read, F32 * written)


def _embedding_ops(shape: DecoderShape, rows: int) -> tuple[Op, ...]:
    table = Traffic("weights", shape.embedding.dtype, rows * shape.embedding.nbytes(shape.hidden, 1))
    traffic = (table, _activations(0, rows * shape.hidden))
    ops = [Op("embedding", "embedding", rows, 0.0, traffic, columns=shape.hidden, format=shape.embedding)]
    if shape.embedding_scaled:
        ops.append(_serial("embedding_scale", "add", rows, shape.hidden, 1.0, 1))
    if shape.position_rows:
        ops.append(replace(ops[0], name="positions"))
        ops.append(_serial("positions_add", "add", rows, shape.hidden, 1.0, 2))
    return tuple(ops)


def _linear(product: Product, rows: int) -> list[Op]:
    weights = Traffic("weights", product.format.dtype, product.format.nbytes(product.k, product.columns))
    traffic = (weights, _activations(rows * product.k, rows * product.columns))
    flops = 2.0 * rows * product.k * product.columns
    fields = {"k": product.k, "columns": product.columns, "format": product.format}
    ops = [Op(product.name, "linear", rows, flops, traffic, parallel=product.columns, **fields)]  # type: ignore[arg-type]
    if product.bias:
        ops.append(_serial(product.name + "_bias", "add", rows, product.columns, 1.0, 1, product.columns))
    return ops


def _serial(name: str, kind: str, rows: int, width: int, flops_each: float, operands: int, weights: int = 0) -> Op:
    """A kernel that runs on one thread over rows of `width` values, reading `operands` of them."""
    traffic = [_activations(operands * rows * width, rows * width)]
    if weights:
        traffic.append(Traffic("weights", "float32", F32 * weights))
    return Op(name, kind, rows, flops_each * rows * width, tuple(traffic), columns=width)


def _layer_ops(shape: DecoderShape, layer: Layer, n: int, past: int, batch: int) -> Iterable[Op]:
    rows = n * batch
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield from _norm("attention", shape.hidden, rows, layer)
    for product in layer.attention_in:
        yield from _linear(product, rows)
    if len(layer.attention_in) == 1:
        for name, width in (("take_q", q), ("take_k", kv), ("take_v", kv)):
            yield _serial(name, "take", rows, width, 0.0, 1)
    for name, width in (("q", q), ("k", kv)):
        if layer.qk_norm:
            yield _serial(f"{name}_norm", "norm", rows, width, 4.0, 1, shape.head_dim)
        if layer.rope:
            yield _serial(f"rope_{name}", "rope", rows, width, 3.0, 2)
    yield _attention(shape, layer, n, past, batch)
    yield from _linear(layer.out, rows)
    if layer.norms > 2:
        yield _serial("attention_post_norm", "norm", rows, shape.hidden, 4.0, 1, shape.hidden)
    yield from _norm("ffn", shape.hidden, rows, layer)
    for product in layer.ffn_in:
        yield from _linear(product, rows)
    if layer.packed_ffn:
        for name in ("take_gate", "take_up"):
            yield _serial(name, "take", rows, shape.ffn, 0.0, 1)
    operands, name = (2, f"{layer.activation}_mul") if layer.gated else (1, layer.activation)
    yield _serial(name, "silu_mul", rows, shape.ffn, _BEND, operands)
    yield from _linear(layer.down, rows)
    if layer.norms > 2:
        yield _serial("ffn_post_norm", "norm", rows, shape.hidden, 4.0, 1, shape.hidden)


def _norm(name: str, hidden: int, rows: int, layer: Layer) -> Iterable[Op]:
    """A norm of the sum of a block's input and output: one kernel, or, with a bias, an addition and a layer norm."""
    if not layer.norm_bias:
        yield _serial(f"{name}_norm", "norm", rows, hidden, 4.0, 2, hidden)
        return
    yield _serial(f"{name}_add", "add", rows, hidden, 1.0, 2)
    yield _serial(f"{name}_norm", "norm", rows, hidden, 7.0, 1, 2 * hidden)


def _attention(shape: DecoderShape, layer: Layer, n: int, past: int, batch: int) -> Op:
    """Scores and weighted sum: 4 x heads x head_dim operations for each visible key of each row, and a cap's tanh."""
    visible = sum(visible_keys(past + t, layer.window) for t in range(n))
    span = past + n if not layer.window else min(past + n, layer.window + n - 1)
    kv_row = 2 * shape.kv_heads * shape.head_dim * shape.kv_bytes_per_value
    kv = Traffic("kv", "float32", batch * kv_row * span, batch * kv_row * n)
    q = shape.heads * shape.head_dim
    traffic = (kv, _activations(batch * n * (q + 2 * shape.kv_heads * shape.head_dim), batch * n * q))
    each = 4.0 * q + (_BEND * shape.heads if layer.softcap else 0.0)
    return Op(
        *("attention", "attention", n * batch, each * visible * batch, traffic),
        parallel=shape.kv_heads,
        columns=q,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        past=past,
        window=layer.window,
        batch=batch,
    )


def visible_keys(position: int, window: int) -> int:
    """Keys that the token at `position` (from 0) attends to, itself included."""
    return min(position + 1, window) if window else position + 1


def _head_ops(shape: DecoderShape, rows: int, head_rows: int) -> Iterable[Op]:
    yield from _norm("final", shape.hidden, rows, shape.layers[-1])
    yield from _linear(shape.head, head_rows)
    if shape.head_softcap:
        yield _serial("head_softcap", "silu_mul", head_rows, shape.vocab, _BEND, 1)
    traffic = (_activations(head_rows * shape.vocab, 0), Traffic("activations", "int64", 0, 8 * head_rows))
    yield Op("argmax", "argmax", head_rows, 1.0 * head_rows * shape.vocab, traffic, columns=shape.vocab)
