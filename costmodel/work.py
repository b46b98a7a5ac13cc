"""The operators of one step of a decoder, counted: floating-point operations, bytes read and written.

A step processes n new tokens of each sequence after `past` tokens in its KV cache. Counts are of the arithmetic itself,
one read or write of each operand; what a kernel reads again because a cache is too small is the roofline's business.
A multiply-add counts two operations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from costmodel.decoder import DecoderSpec
from costmodel.format import F32
from costmodel.operators import STREAMS, TABLES, Operator
from targets.errors import UserError
from targets.kv_format import KV_FORMATS, KvFormat

_BIAS = 2.0  # of a score
_NONLINEARITY = 20.0  # operations of a sigmoid, a GELU or a tanh, counted as its exp and division are written
# kind -> rows of the operator's width that are read and written for a token, and operations for each value
_ROWWISE = {
    "add": (2, 1, 1.0),
    "bias": (1, 1, 1.0),
    "scale": (1, 1, 1.0),
    "take": (1, 1, 0.0),
    "join_columns": (1, 1, 0.0),
    "scale_columns": (1, 1, 1.0),
    "match_magnitude": (2, 1, 5.0),
    "gaussian_top_k": (1, 1, 6.0),
    "rms_norm": (1, 1, 4.0),
    "add_rms_norm": (2, 2, 5.0),
    "layer_norm": (1, 1, 7.0),
    "rope": (2, 1, 3.0),
    "silu_mul": (2, 1, _NONLINEARITY),
    "gelu_mul": (2, 1, _NONLINEARITY),
    "gelu": (1, 1, _NONLINEARITY),
    "relu": (1, 1, 1.0),
    "squared_relu": (1, 1, 2.0),
    "xielu": (1, 1, _NONLINEARITY),
    "clip": (1, 1, 2.0),
    "tanh": (1, 1, _NONLINEARITY),
}


@dataclass(frozen=True)
class Traffic:
    """Bytes of one kind ("weights", "kv" or "activations") and storage type."""

    kind: str
    dtype: str
    read_bytes: float
    written_bytes: float = 0.0


@dataclass(frozen=True)
class Op:
    """One kernel call of a step.

    Attributes:
        operator: what is called.
        rows: rows computed together: new tokens times sequences.
        flops: floating-point operations.
        traffic: bytes by kind and dtype.
        parallel: equal parts of its parallel region; 0 runs on one thread.
        past: tokens in the KV cache before the step, of an attention.
        batch: sequences, of an attention.
    """

    operator: Operator
    rows: int
    flops: float
    traffic: tuple[Traffic, ...]
    parallel: int = 0
    past: int = 0
    batch: int = 1

    @property
    def kind(self) -> str:
        """The operator's."""
        return self.operator.kind

    @property
    def name(self) -> str:
        """The operator's."""
        return self.operator.name

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
    spec: DecoderSpec, n: int, past: int, batch: int = 1, result_rows: int | None = None
) -> list[tuple[Op, ...]]:
    """The operators of each unit (embedding, layers, head) of a step; units that are alike are one object.

    Args:
        spec: the decoder.
        n: new tokens of each sequence.
        past: tokens in the KV cache before them.
        batch: sequences; their rows share one read of the weights.
        result_rows: rows of each sequence beyond the last attention: n where None, 1 for the last chunk of a prompt,
            and 0, which leaves those operators out, for the chunks before it.

    Raises:
        UserError: n or batch below 1, past below 0.
    """
    if n < 1 or batch < 1 or past < 0:
        raise UserError(f"a step has n >= 1, batch >= 1, past >= 0; this one has {n}, {batch}, {past}")
    rows = n * batch
    counted: dict[int, tuple[Op, ...]] = {}
    units = []
    for unit in spec.units:
        if id(unit) not in counted:
            counted[id(unit)] = tuple(_count(op, spec, n, past, batch, rows) for op in unit)
        units.append(counted[id(unit)])
    if result_rows is not None:
        whole, rows = units[-2], result_rows * batch
        cut = 1 + next(i for i, op in enumerate(whole) if op.kind == "attention")
        after = [_count(op, spec, n, past, batch, rows) for op in (*spec.units[-2][cut:], *spec.units[-1]) if rows]
        layer = len(whole) - cut if rows else 0
        units[-2:] = [(*whole[:cut], *after[:layer]), tuple(after[layer:])]
    return units


def step_ops(spec: DecoderSpec, n: int, past: int, batch: int = 1, result_rows: int | None = None) -> list[Op]:
    """The operators of a step in order; see `step_units`. Those of layers name layer 0 where layers are alike."""
    return [op for unit in step_units(spec, n, past, batch, result_rows) for op in unit]


def _count(op: Operator, spec: DecoderSpec, n: int, past: int, batch: int, rows: int) -> Op:
    if op.kind in TABLES:
        table = Traffic("weights", op.format.dtype, rows * op.format.nbytes(op.columns, 1))
        return Op(op, rows, 0.0, (table, _activations(0, rows * op.columns)))
    if op.kind == "attention":
        return _attention(op, n, past, batch, KV_FORMATS[spec.kv])
    if op.kind == "linear":
        weights = Traffic("weights", op.format.dtype, op.matrix_bytes)
        values = _activations(rows * op.k, rows * op.columns)
        return Op(op, rows, 2.0 * rows * op.k * op.columns, (weights, values), parallel=op.columns)
    if op.kind == "argmax":
        choice = Traffic("activations", "int64", 0, 8 * rows)
        return Op(op, rows, 1.0 * rows * op.columns, (_activations(rows * op.columns, 0), choice))
    if op.kind in STREAMS:
        return _streams(op, rows)
    read, written, flops = _ROWWISE[op.kind]
    traffic: tuple[Traffic, ...] = (_activations(read * rows * op.columns, written * rows * op.columns),)
    if op.small_values:
        traffic += (Traffic("weights", "float32", F32 * op.small_values),)
    return Op(op, rows, flops * rows * op.columns, traffic)


def _activations(read: float, written: float) -> Traffic:
    return Traffic("activations", "float32", F32 * read, F32 * written)


def _streams(op: Operator, rows: int) -> Op:
    """A step of AltUp: a multiply-add for each pair of streams, or one with what a layer moved, or an addition."""
    part, factors = op.columns // op.groups, {"altup_predict": op.groups**2, "altup_correct": op.groups}
    beside = factors.get(op.kind, 0) + (0 if op.kind == "altup_predict" else part)
    flops = {"altup_predict": 2.0 * op.groups, "altup_correct": 3.0, "altup_add": 1.0}[op.kind] * op.columns
    return Op(op, rows, rows * flops, (_activations(rows * (op.columns + beside), rows * op.columns),))


def _attention(op: Operator, n: int, past: int, batch: int, stored: KvFormat) -> Op:
    """Scores and weighted sum: 4 x heads x head_dim operations for a row's each visible key, a cap's tanh, a bias."""
    visible = sum(visible_keys(past + t, op.window) for t in range(n))
    span = past + n if not op.window else min(past + n, op.window + n - 1)
    kv_values, token = 2 * op.kv_heads * op.head_dim, op.kv_heads * stored.token_bytes(op.head_dim)
    kv = Traffic("kv", stored.name, batch * token * span, batch * token * n)
    q = op.heads * op.head_dim
    traffic = (kv, _activations(batch * n * (q + kv_values), batch * n * q))
    each = 4.0 * q + op.heads * ((_NONLINEARITY if op.softcap else 0.0) + (_BIAS if op.alibi else 0.0))
    return Op(op, n * batch, each * visible * batch, traffic, parallel=op.kv_heads, past=past, batch=batch)


def visible_keys(position: int, window: int) -> int:
    """Keys that the token at `position` (from 0) attends to, itself included."""
    return min(position + 1, window) if window else position + 1
