"""What a placement keeps in memory: mapped weights, copies for the GPU, KV caches, activations.

Weights count where they are read (placement.py). The runtime copies the GPU's weights out of the mapped file and then
maps them no longer: what is left of them in memory are clean pages of the system's file cache, which make room when
they must, also while the copies are being made.
"""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.decoder import DecoderSpec
from costmodel.format import F32
from costmodel.prompt_chunks import CHUNK
from targets.device import Board

PROCESS_BYTES = 150_000_000  # Python, numpy, TVM's runtime and two libraries; assumed


@dataclass(frozen=True)
class Memory:
    """Bytes by use.

    Attributes:
        mapped_bytes: weights that the CPU reads, mapped from their file.
        gpu_bytes: the GPU's copies of the weights that it reads.
        kv_bytes: KV caches, on either side.
        activation_bytes: what a step computes with.
        process_bytes: the program itself.
    """

    mapped_bytes: int = 0
    gpu_bytes: int = 0
    kv_bytes: int = 0
    activation_bytes: int = 0
    process_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.mapped_bytes + self.gpu_bytes + self.kv_bytes + self.activation_bytes + self.process_bytes

    def __add__(self, other: Memory) -> Memory:
        """Uses are added one by one."""
        return Memory(
            self.mapped_bytes + other.mapped_bytes,
            self.gpu_bytes + other.gpu_bytes,
            self.kv_bytes + other.kv_bytes,
            self.activation_bytes + other.activation_bytes,
            self.process_bytes + other.process_bytes,
        )


def model_memory(
    spec: DecoderSpec, context: int, weights: tuple[int, int], rows: int = CHUNK, slots: int = 1
) -> Memory:
    """What one model needs with `context` rows of KV cache in each slot; `rows` tokens are computed at once.

    `weights` are the bytes that the CPU and the GPU read (Placement.weight_bytes). Activations: the residual streams,
    q, k, v and the gated product of one layer, and the logits.
    """
    return Memory(*weights, slots * spec.kv_bytes(context), rows_bytes(spec, rows) + F32 * rows * spec.vocab, 0)


def rows_bytes(spec: DecoderSpec, rows: int) -> int:
    """What a step of so many tokens computes with, less its logits."""
    heads = max(2 * op.head_dim * (op.heads + op.kv_heads) for op in spec.attentions)
    return F32 * rows * (4 * spec.border + heads + 3 * spec.ffn)


def available_bytes(board: Board) -> int:
    """What the board leaves for models."""
    return board.dram.capacity_bytes - board.dram.reserved_bytes
