"""One kernel of a decoder: its kind, its sizes and the format of its weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from costmodel.format import F32, FLOAT, Format
from costmodel.place import Part
from targets.errors import UserError

TABLES = ("embedding", "embedding_by_layer", "positions")  # read one row a token
NONLINEARITIES = ("silu_mul", "gelu_mul", "gelu", "relu", "squared_relu", "xielu", "tanh")
NORMS = ("rms_norm", "add_rms_norm", "layer_norm")
STREAMS = ("altup_predict", "altup_correct", "altup_add")  # on several residual streams in a row
STATISTICS = ("match_magnitude", "gaussian_top_k")  # move a row by its own mean, or by its square's
KINDS = (
    *TABLES,
    *("linear", "bias", "add", "scale", "clip", "take", "rope", "attention", "argmax"),
    *("join_columns", "scale_columns"),
    *STREAMS,
    *STATISTICS,
    *NORMS,
    *NONLINEARITIES,
)


@dataclass(frozen=True)
class Operator:
    """One kernel of a decoder.

    Attributes:
        kind: of KINDS, the names of the decoder dialect (passes/relax/dialect.py) without their prefix.
        name: unique in its part: "q", "gate", "attention_norm".
        part: which part of which layer it belongs to.
        columns: values of a row that it writes; of an argmax, that it reads.
        k: values of a row that a linear reads; rows of a table.
        format: of the matrix of a linear or a table; without meaning for others.
        groups: equal parts of a row that a norm treats alone: heads; the streams of one of STREAMS.
        own: each of them has a scale (and shift) of its own.
        heads, kv_heads, head_dim: of an attention.
        window: keys that an attention sees, 0 for all.
        softcap: an attention's scores pass through tanh.
        alibi: something is added to an attention's scores by the distance of the key.
        activations: what a linear reads, FLOAT or INT8.
        makes_codes: no linear before it reads the same rows, so its int8 codes are made for it.
    """

    kind: str
    name: str
    part: Part
    columns: int
    k: int = 0
    format: Format = field(default_factory=Format)
    groups: int = 1
    own: bool = False
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    window: int = 0
    softcap: bool = False
    alibi: bool = False
    activations: str = FLOAT
    makes_codes: bool = False

    def __post_init__(self) -> None:
        """Refuse kinds and sizes that no kernel has."""
        if self.kind not in KINDS:
            raise UserError(f"operator kind {self.kind!r} is not known; known: {', '.join(KINDS)}")
        sizes = {"columns": self.columns, "groups": self.groups}
        if self.kind in ("linear", *TABLES):
            sizes["k"] = self.k
        if self.kind == "attention":
            sizes |= {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": self.head_dim}
        for key, value in sizes.items():
            if value < 1:
                raise UserError(f"{self.part.text}: {self.name}: {key} is {value}; it must be at least 1")
        if self.kind == "attention" and self.heads % self.kv_heads:
            raise UserError(f"{self.part.text}: {self.heads} heads cannot share {self.kv_heads} KV heads evenly")

    @property
    def small_values(self) -> int:
        """Float32 weights beside a matrix: a norm's scale (and shift), a bias."""
        each = {"rms_norm": 1, "add_rms_norm": 1, "layer_norm": 2, "bias": 1, "scale_columns": 1}.get(self.kind, 0)
        return each * self.columns // (1 if self.own else self.groups)

    @property
    def matrix_values(self) -> int:
        """Weights of a linear or a table."""
        return self.k * self.columns if self.kind in ("linear", *TABLES) else 0

    @property
    def matrix_bytes(self) -> int:
        """Bytes of a linear's or a table's weights as they are stored: tables by row."""
        if self.kind in TABLES:
            return self.format.nbytes(self.columns, self.k)
        return self.format.nbytes(self.k, self.columns) if self.kind == "linear" else 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of all its weights."""
        return self.matrix_bytes + F32 * self.small_values
