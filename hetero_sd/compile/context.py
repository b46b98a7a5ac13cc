"""How many rows the KV caches have: what is taken where the user says nothing, limits, whole tiles."""

from __future__ import annotations

from costmodel.prompt_chunks import CHUNK
from targets.cpu.tile import cpu_tile
from targets.device import Board

DEFAULT_CONTEXT = 1024
MOST_CONTEXT = 128 * 1024


def whole_context(board: Board, context: int) -> int:
    """Rows of KV cache for that many tokens: at least a prompt chunk, in whole tiles of every cluster's kernels."""
    lanes = max(cpu_tile(cluster.core).lanes for cluster in board.clusters)
    return -(-max(context, CHUNK) // lanes) * lanes


def rows_within(board: Board, positions: int) -> int:
    """The most rows of KV cache for a model with that many positions, in whole tiles; 0 where there are too few."""
    lanes = max(cpu_tile(cluster.core).lanes for cluster in board.clusters)
    rows = positions // lanes * lanes
    return rows if rows >= whole_context(board, 1) else 0
