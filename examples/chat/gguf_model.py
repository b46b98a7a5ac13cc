"""A Llama of a GGUF file: its sizes, its weights in the blocks that they were quantised to, and its tokenizer's facts.

GGUF stores blocks of 32 weights of a row. Q4_1: float16 d and m, then 16 bytes whose low halves are weights 0 to 15 and
whose high halves 16 to 31; a weight is d q + m. Q8_0: float16 d, then 32 int8; a weight is d q.
(ggml/src/ggml-common.h and ggml-quants.c of llama.cpp.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 32


@dataclass(frozen=True)
class Blocks:
    """A matrix [rows, columns] in blocks of 32 of a row, as MatMulNBits has them: a weight is scale (q - zero).

    Attributes:
        bits: 4 or 8.
        q: uint8 [rows, columns / 32, 4 * bits]; of two 4-bit weights in a byte the first is the low half.
        scale: float32 [rows, columns / 32].
        zero: float32 [rows, columns / 32], or None for half of the range.
    """

    bits: int
    q: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]
    zero: npt.NDArray[np.float32] | None

    @property
    def rows(self) -> int:
        """Outputs of the matrix multiplication."""
        return int(self.q.shape[0])

    @property
    def columns(self) -> int:
        """Inputs of the matrix multiplication."""
        return int(self.q.shape[1]) * BLOCK

    def take(self, rows: npt.NDArray[np.intp]) -> Blocks:
        """Rows in another order."""
        return Blocks(self.bits, self.q[rows], self.scale[rows], None if self.zero is None else self.zero[rows])

    def floats(self) -> npt.NDArray[np.float32]:
        """The weights, float32 [rows, columns]."""
        q = self.q if self.bits == 8 else np.stack([self.q & 15, self.q >> 4], -1).reshape(self.rows, -1, BLOCK)
        zero = np.float32(1 << (self.bits - 1)) if self.zero is None else self.zero[..., None]
        return (self.scale[..., None] * (q.astype(np.float32) - zero)).reshape(self.rows, self.columns)


@dataclass(frozen=True)
class Sizes:
    """What the graph of a Llama needs to know."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_base: float
    epsilon: float


class GgufModel:
    """An opened file."""

    def __init__(self, path: Path) -> None:
        """Read the file's table of contents; weights are memory-mapped.

        Raises:
            ValueError: it holds no Llama.
        """
        from gguf import GGUFReader

        reader = GGUFReader(path)
        self.facts: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        if self.facts["general.architecture"] != "llama":
            raise ValueError(f"{path} holds a {self.facts['general.architecture']}, this example reads a llama")
        of = {name.removeprefix("llama."): value for name, value in self.facts.items() if name.startswith("llama.")}
        heads, width = int(of["attention.head_count"]), int(of["embedding_length"])
        self.sizes = Sizes(
            layers=int(of["block_count"]),
            width=width,
            heads=heads,
            kv_heads=int(of["attention.head_count_kv"]),
            head_dim=width // heads,
            vocab=len(self.facts["tokenizer.ggml.tokens"]),
            context=int(of["context_length"]),
            rope_base=float(of["rope.freq_base"]),
            epsilon=float(of["attention.layer_norm_rms_epsilon"]),
        )

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor that is not quantised."""
        return np.array(self._tensors[name].data, np.float32)

    def matrix(self, name: str) -> Blocks:
        """A quantised matrix; the rows of q and k are in the order of Hugging Face's Llama.

        llama.cpp rotates neighbouring numbers of a head, Hugging Face the two halves of it. Its converter therefore
        wrote row 2 i + j of a head from row i + j head_dim / 2 (convert_hf_to_gguf.py, `permute`).

        Raises:
            ValueError: its type is neither Q4_1 nor Q8_0.
        """
        tensor = self._tensors[name]
        kind, rows = tensor.tensor_type.name, np.array(tensor.data)
        if kind not in ("Q4_1", "Q8_0"):
            raise ValueError(f"{name} is {kind}: this example reads Q4_1 and Q8_0")
        blocks = q4_1_blocks(rows) if kind == "Q4_1" else q8_0_blocks(rows)
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            half = self.sizes.head_dim // 2
            order = np.arange(blocks.rows).reshape(-1, half, 2).swapaxes(1, 2).reshape(-1)
            return blocks.take(order)
        return blocks


def q4_1_blocks(rows: npt.NDArray[np.uint8]) -> Blocks:
    """The numbers of rows of Q4_1 bytes: d q + m = d (q - zero) with zero = -m / d."""
    raw = rows.reshape(len(rows), -1, 4 + BLOCK // 2)
    d, m = (np.ascontiguousarray(raw[..., i : i + 2]).view(np.float16)[..., 0].astype(np.float32) for i in (0, 2))
    halves = raw[..., 4:]
    q = np.concatenate([halves & 15, halves >> 4], -1)
    constant = d == 0  # all weights are m: m (0 - -1)
    q[constant] = 0
    scale = np.where(constant, m, d)
    zero = np.where(constant, np.float32(-1), -m / np.where(constant, np.float32(1), d))
    return Blocks(4, q[..., ::2] | (q[..., 1::2] << 4), scale, zero.astype(np.float32))


def q8_0_blocks(rows: npt.NDArray[np.uint8]) -> Blocks:
    """The numbers of rows of Q8_0 bytes; 128 is added to q, which is signed."""
    raw = rows.view(np.uint8).reshape(len(rows), -1, 2 + BLOCK)
    d = np.ascontiguousarray(raw[..., :2]).view(np.float16)[..., 0].astype(np.float32)
    return Blocks(8, raw[..., 2:] ^ 128, d, None)
