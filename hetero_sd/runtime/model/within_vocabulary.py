"""A model that answers with ids of the tokenizer only.

Heads are padded to round sizes. A padded row is not trained, so it rarely wins, but where it does its id means
nothing: the best id below `vocab` counts then, for target and drafter alike, so that speculation stays lossless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hetero_sd.runtime.model.protocol import CHOICE, LOGITS, Model, Models, Outputs, Pending, Row, Slots
from targets.backend import HOST


class WithinVocabulary(Model):
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
    def processor(self) -> str:
        """See :attr:`hetero_sd.runtime.model.model.CompiledModel.processor`; the CPU's for a model that has none."""
        return str(getattr(self._model, "processor", HOST))

    @property
    def thread_facts(self) -> dict[str, Any] | None:
        """See :attr:`hetero_sd.runtime.model.model.CompiledModel.thread_facts`; None for a model that has none."""
        facts: dict[str, Any] | None = getattr(self._model, "thread_facts", None)
        return facts

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Pending:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.submit`."""
        return _Cut(self._model, self.vocab, ids, pos, outputs, last)

    def rows_layout(self, count: int) -> list[tuple[str, tuple[int, ...]]]:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.rows_layout`."""
        return self._model.rows_layout(count)

    def read_rows(self, count: int) -> list[npt.NDArray[Any]]:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.read_rows`."""
        return self._model.read_rows(count)

    def write_rows(self, ids: Sequence[int], rows: Sequence[npt.NDArray[Any]]) -> None:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.write_rows`."""
        self._model.write_rows(ids, rows)


class _Cut:
    """A step whose outputs are cut to the vocabulary; implements the Pending protocol."""

    def __init__(
        self, model: Model, vocab: int, ids: Sequence[int], pos: int, outputs: Sequence[str], last: bool
    ) -> None:
        self._model, self._vocab, self._ids, self._pos, self._last = model, vocab, ids, pos, last
        self._whole = model.submit(ids, pos, outputs, last)

    def result(self) -> Outputs:
        outputs = dict(self._whole.result())
        if LOGITS in outputs:
            outputs[LOGITS] = outputs[LOGITS][:, : self._vocab]
        if CHOICE in outputs and (outputs[CHOICE] >= self._vocab).any():
            logits = outputs.get(LOGITS)
            outputs[CHOICE] = (self._logits() if logits is None else logits).argmax(-1)
        return outputs

    def _logits(self) -> npt.NDArray[np.float32]:
        """The step again, for its logits; where one row was wanted, its token alone."""
        skipped = len(self._ids) - 1 if self._last else 0
        return self._model.forward(self._ids[skipped:], self._pos + skipped)[:, : self._vocab]


class SlotsWithinVocabulary(Slots):
    """The same of a model with slots; implements the Slots protocol."""

    def __init__(self, slots: Slots, vocab: int) -> None:
        """Wrap a model whose head has at least `vocab` rows."""
        self._model, self.vocab = slots, vocab
        self.context, self.slots, self.name = slots.context, slots.slots, slots.name
        self.row_widths, self.read_widths, self.cache = slots.row_widths, slots.read_widths, slots.cache
        self.prefill_widths = slots.prefill_widths

    def slot(self, slot: int) -> Model:
        """See :meth:`hetero_sd.runtime.model.protocol.Slots.slot`."""
        return WithinVocabulary(self._model.slot(slot), self.vocab)

    def rows(self, rows: Sequence[Row]) -> Outputs:
        """See :meth:`hetero_sd.runtime.model.protocol.Slots.rows`."""
        outputs = self._model.rows(rows)
        logits, choice = outputs[LOGITS][:, : self.vocab], outputs[CHOICE]
        if (choice >= self.vocab).any():
            choice = np.where(choice >= self.vocab, logits.argmax(-1), choice)
        return {LOGITS: logits, CHOICE: choice}


def slots_of(target: Model, vocab: int | None) -> Slots | None:
    """The slots of a loaded target, with ids below `vocab` alone; None where it has one sequence only."""
    if getattr(target, "slots", 1) == 1:
        return None
    slots: Any = target
    return SlotsWithinVocabulary(slots, vocab) if vocab is not None and 0 < vocab < target.vocab else slots


def within_vocabulary(models: Models, vocab: int | None) -> Models:
    """The models with ids below `vocab` alone; a model without padded rows, or None, changes nothing."""

    def cut(model: Model) -> Model:
        return WithinVocabulary(model, vocab) if vocab is not None and 0 < vocab < model.vocab else model

    return Models(cut(models.target), cut(models.draft) if models.draft is not None else None)
