"""Toy models: their logits depend on the whole text in the cache, so a wrong rollback shows in the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from hetero_sd.runtime.interface import ContextFull


class TableModel:
    """Logits = table[state]; the state is a hash of all tokens up to the row, read back from the KV rows."""

    def __init__(self, table: np.ndarray, context: int = 64, name: str = "toy") -> None:
        self.table = np.asarray(table, np.float32)  # [states, vocab]
        self.vocab = self.table.shape[1]
        self.context = context
        self.name = name
        self.rows: list[int] = []
        self.fed: list[tuple[int, int]] = []  # (pos, n) of every call

    def forward(self, ids: Sequence[int], pos: int) -> np.ndarray:
        ids = [int(i) for i in ids]
        assert len(ids) >= 1
        assert 0 <= pos <= len(self.rows), "a gap in the KV cache"
        assert all(0 <= i < self.vocab for i in ids), "an id the model does not know"
        if pos + len(ids) > self.context:
            raise ContextFull(f"{pos} + {len(ids)} > {self.context}")
        self.fed.append((pos, len(ids)))
        self.rows[pos:] = ids
        return np.stack([self.table[self._state(pos + i + 1)] for i in range(len(ids))])

    def argmax(self, ids: Sequence[int], pos: int) -> np.ndarray:
        return self.forward(ids, pos).argmax(-1)

    def extend(self, ids: Sequence[int], pos: int) -> int:
        return int(self.argmax(ids, pos)[-1])

    def _state(self, length: int) -> int:
        state = 0
        for token in self.rows[:length]:
            state = (5 * state + 3 * token + 1) % 10007
        return state % len(self.table)


def make_pair(
    seed: int,
    noise: float = 1.0,
    vocab: int = 6,
    states: int = 11,
    context: int = 64,
    draft_vocab: int | None = None,
    draft_context: int | None = None,
) -> tuple[TableModel, TableModel]:
    """Return a target and a drafter that agrees with it the more, the smaller the noise."""
    rng = np.random.default_rng(seed)
    draft_vocab = draft_vocab or vocab
    table = 2.0 * rng.standard_normal((states, max(vocab, draft_vocab)))
    noisy = table + noise * rng.standard_normal(table.shape)
    return (
        TableModel(table[:, :vocab], context, "target"),
        TableModel(noisy[:, :draft_vocab], draft_context or context, "draft"),
    )


@pytest.fixture(scope="session")
def pair() -> Callable[..., tuple[TableModel, TableModel]]:
    return make_pair


@pytest.fixture(scope="session")
def table_model() -> type[TableModel]:
    return TableModel
