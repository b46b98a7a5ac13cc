"""A model that answers with ids of the tokenizer only.

Heads are padded to round sizes. A padded row is not trained, so it rarely wins, but where it does its id means
nothing: the best id below `vocab` counts then, for target and drafter alike, so that speculation stays lossless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hetero_sd.runtime.model.protocol import Model, Models


class WithinVocabulary:
    """A model with its logits cut to the first `vocab` ids; implements the Model protocol.

    The model chooses the best of all rows in its own kernel. Only where that is padding, the step is run again for
    its logits: the same rows of the cache are written with the same numbers.
    """

    def __init__(self, model: Model, vocab: int) -> None:
        """Wrap a model whose head has at least `vocab` rows."""
        self._model = model
        self.vocab = vocab
        self.context, self.name = model.context, model.name

    @property
    def thread_facts(self) -> dict[str, Any] | None:
        """See :attr:`hetero_sd.runtime.model.model.CompiledModel.thread_facts`; None for a model that has none."""
        facts: dict[str, Any] | None = getattr(self._model, "thread_facts", None)
        return facts

    def forward(self, ids: Sequence[int], pos: int) -> npt.NDArray[np.float32]:
        """Logits, float32 [n, vocab]; see :class:`hetero_sd.runtime.model.protocol.Model`."""
        return self._model.forward(ids, pos)[:, : self.vocab]

    def argmax(self, ids: Sequence[int], pos: int) -> npt.NDArray[np.int64]:
        """Best id below `vocab` of each row, int64 [n]."""
        best = self._model.argmax(ids, pos)
        if (np.asarray(best) >= self.vocab).any():
            best = self.forward(ids, pos).argmax(-1)
        return best

    def extend(self, ids: Sequence[int], pos: int) -> int:
        """Feed a prompt and return the best id below `vocab` after its last token."""
        best = self._model.extend(ids, pos)
        if best >= self.vocab:
            best = int(self.argmax(ids[-1:], pos + len(ids) - 1)[0])
        return best


def within_vocabulary(models: Models, vocab: int | None) -> Models:
    """The models with ids below `vocab` alone; a model without padded rows, or None, changes nothing."""

    def cut(model: Model) -> Model:
        return WithinVocabulary(model, vocab) if vocab is not None and 0 < vocab < model.vocab else model

    return Models(cut(models.target), cut(models.draft) if models.draft is not None else None)
