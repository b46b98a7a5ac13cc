"""A decoder's sizes and weight formats: all that its cost depends on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from targets.errors import UserError

F32 = 4  # bytes of an activation, of a KV value and of a norm weight
_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class Format:
    """How a matrix is stored.

    Attributes:
        dtype: float32, float16, bfloat16, int8 or int4.
        block: input values that share a scale; 0 without scales.
        scale_dtype: of the scales.
        zeros: a zero point for each scale.
        zero_dtype: of the zero points: uint8 (one byte, as the packed layout keeps them), float16 or float32.
    """

    dtype: str = "float32"
    block: int = 0
    scale_dtype: str = "float32"
    zeros: bool = False
    zero_dtype: str = "uint8"

    def __post_init__(self) -> None:
        """Refuse formats that no kernel reads."""
        if self.dtype not in _BITS:
            raise UserError(f"weight format {self.dtype!r} is not known; known: {', '.join(_BITS)}")
        if (self.block > 0) != (self.dtype in ("int8", "int4")):
            raise UserError(
                f"weight format {self.dtype} with blocks of {self.block}: int8 and int4 have scales, others none"
            )

    @property
    def bits(self) -> int:
        """Bits of one weight, scales aside."""
        return _BITS[self.dtype]

    @property
    def quantised(self) -> bool:
        """Whether weights are stored in blocks with scales."""
        return self.block > 0

    def nbytes(self, k: int, columns: int) -> int:
        """Bytes of a [k, columns] matrix: weights, scales and zero points."""
        size = columns * k * self.bits // 8
        if self.block:
            blocks = columns * -(-k // self.block)
            zero = _BITS.get(self.zero_dtype, 8) // 8 if self.zeros else 0
            size += blocks * (_BITS[self.scale_dtype] // 8 + zero)
        return size


@dataclass(frozen=True)
class Product:
    """A matrix product x[rows, k] @ w[k, columns] (+ bias)."""

    name: str
    k: int
    columns: int
    format: Format = Format()
    bias: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of weights and bias."""
        return self.format.nbytes(self.k, self.columns) + (F32 * self.columns if self.bias else 0)


@dataclass(frozen=True)
class Layer:
    """One decoder layer.

    Attributes:
        attention_in: products that make q, k and v: three, or one packed.
        out: the product after attention.
        ffn_in: products that make gate and up: two, or one packed; one plain product where there is no gate.
        down: the product after the gate.
        window: tokens that attention sees, 0 for all.
        qk_norm: q and k are normalised by head.
        norms: normalisations of a whole row; 2, or 4 where the outputs are normalised too (gemma2, gemma3).
        softcap: scores pass through tanh.
        rope: q and k are rotated.
        norm_bias: normalisations have a bias (layer norms).
        activation: of the FFN, "silu" or "gelu".
    """

    attention_in: tuple[Product, ...]
    out: Product
    ffn_in: tuple[Product, ...]
    down: Product
    window: int = 0
    qk_norm: bool = False
    norms: int = 2
    softcap: bool = False
    rope: bool = True
    norm_bias: bool = False
    activation: str = "silu"

    @property
    def gated(self) -> bool:
        """The activation of one part multiplies the other."""
        return len(self.ffn_in) == 2 or self.packed_ffn

    @property
    def packed_ffn(self) -> bool:
        """Gate and up come from one product."""
        return len(self.ffn_in) == 1 and self.ffn_in[0].columns == 2 * self.down.k

    def norm_values(self, hidden: int, head_dim: int) -> int:
        """Weights of all normalisations."""
        return self.norms * hidden * (2 if self.norm_bias else 1) + (2 * head_dim if self.qk_norm else 0)

    @property
    def products(self) -> tuple[Product, ...]:
        """All products in order."""
        return (*self.attention_in, self.out, *self.ffn_in, self.down)


@dataclass(frozen=True)
class DecoderShape:
    """What the cost of a decoder depends on.

    Attributes:
        name: for people.
        heads, kv_heads, head_dim, hidden, ffn, vocab: sizes.
        layers: each layer; equal layers are priced once.
        embedding: how the table [vocab, hidden] is stored.
        head: the product that makes the logits.
        tied: embedding and head share one matrix.
        kv_bytes_per_value: of the KV cache.
        position_rows: rows of a table of learned positions, 0 without one.
        embedding_scaled: embedded rows are multiplied by a number.
        head_softcap: logits pass through tanh.
    """

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    vocab: int
    layers: tuple[Layer, ...]
    embedding: Format
    head: Product
    tied: bool
    kv_bytes_per_value: int = F32
    position_rows: int = 0
    embedding_scaled: bool = False
    head_softcap: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that contradict each other."""
        sizes = {f: getattr(self, f) for f in ("heads", "kv_heads", "head_dim", "hidden", "ffn", "vocab")}
        for key, value in sizes.items():
            if value < 1:
                raise UserError(f"{self.name}: {key} is {value}; it must be at least 1")
        if self.heads % self.kv_heads:
            raise UserError(f"{self.name}: {self.heads} heads cannot share {self.kv_heads} KV heads evenly")
        if not self.layers:
            raise UserError(f"{self.name}: there are no layers")

    @property
    def units(self) -> int:
        """Parts that a border may separate: the embedding, each layer, the head."""
        return len(self.layers) + 2

    @property
    def parameters(self) -> int:
        """Number of weights, a tied matrix once."""
        per_layer = [
            sum(p.k * p.columns + (p.columns if p.bias else 0) for p in layer.products)
            + layer.norm_values(self.hidden, self.head_dim)
            for layer in self.layers
        ]
        head = self.head.k * self.head.columns
        tables = self.position_rows + (0 if self.tied else self.vocab)
        return sum(per_layer) + self._last_norm + head + tables * self.hidden

    @property
    def _last_norm(self) -> int:
        return self.hidden * (2 if self.layers[-1].norm_bias else 1)

    @cached_property
    def unit_bytes(self) -> tuple[int, ...]:
        """Bytes of weights of each unit; a tied matrix counts with the head."""
        rows = self.position_rows + (0 if self.tied else self.vocab)
        layers = [
            sum(p.nbytes for p in layer.products) + F32 * layer.norm_values(self.hidden, self.head_dim)
            for layer in self.layers
        ]
        return (self.embedding.nbytes(self.hidden, rows), *layers, self.head.nbytes + F32 * self._last_norm)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, as they are mapped."""
        return sum(self.unit_bytes)

    @property
    def weight_bytes_by_dtype(self) -> dict[str, int]:
        """Bytes of all weights by the format of their matrix; norms and biases are float32."""
        sizes: dict[str, int] = {}
        for product in (*(p for layer in self.layers for p in layer.products), self.head):
            key = product.format.dtype
            sizes[key] = sizes.get(key, 0) + product.format.nbytes(product.k, product.columns)
        if rows := self.position_rows + (0 if self.tied else self.vocab):
            key = self.embedding.dtype
            sizes[key] = sizes.get(key, 0) + self.embedding.nbytes(self.hidden, rows)
        small = self.weight_bytes - sum(sizes.values())
        if small:
            sizes["float32"] = sizes.get("float32", 0) + small
        return dict(sorted(sizes.items()))

    @property
    def main_dtype(self) -> str:
        """The format with the most bytes."""
        sizes = self.weight_bytes_by_dtype
        return max(sizes, key=lambda k: sizes[k])

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of the KV cache for that many tokens: keys and values of every layer."""
        return 2 * len(self.layers) * self.kv_heads * self.head_dim * self.kv_bytes_per_value * tokens
