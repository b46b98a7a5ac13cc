"""A model that remembers what its KV cache holds, so that a text is read only from where it is new.

Turns of a conversation and prompts with a common beginning share rows of the cache. A row depends on the tokens up to
it alone, bit for bit however they were fed (protocol.py), so a text that begins with kept rows is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from hetero_sd.runtime.model.protocol import CHOICE, Model, Models, Outputs, Pending
from hetero_sd.runtime.model.shared_rows import SharedRows
from targets.backend import HOST


class KeptPrefix(Model):
    """A model and the tokens of its cache's rows; implements the Model protocol."""

    def __init__(self, model: Model) -> None:
        """Wrap a model that nothing else feeds from here on."""
        self.model = model
        self.vocab, self.context, self.name = model.vocab, model.context, model.name
        self._rows: list[int] = []  # tokens whose rows are whole

    @property
    def processor(self) -> str:
        """See :attr:`hetero_sd.runtime.model.model.CompiledModel.processor`; the CPU's for a model that has none."""
        return str(getattr(self.model, "processor", HOST))

    @property
    def thread_facts(self) -> dict[str, Any] | None:
        """See :attr:`hetero_sd.runtime.model.model.CompiledModel.thread_facts`; None for a model that has none."""
        facts: dict[str, Any] | None = getattr(self.model, "thread_facts", None)
        return facts

    @property
    def kept_rows(self) -> int:
        """Rows of the cache that hold a text."""
        return len(self._rows)

    @property
    def tokens(self) -> list[int]:
        """Of the text whose rows the cache holds."""
        return list(self._rows)

    def restore(self, ids: Sequence[int], rows: Sequence[npt.NDArray[Any]]) -> None:
        """Put the rows of a text into the cache, from its first one on, that its `read_rows` returned."""
        self._rows.clear()
        self.model.write_rows(ids, rows)
        self._rows += ids

    def hand_over(self) -> list[int]:
        """The text whose rows the cache holds, for another who feeds the model from here on; it is forgotten here."""
        tokens = self.tokens
        self.forget(0)
        return tokens

    def held(self, ids: Sequence[int]) -> int:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.held`."""
        same = 0
        for row, token in zip(self._rows, ids, strict=False):
            if row != token:
                break
            same += 1
        return same

    def forget(self, pos: int) -> None:
        """Count on no rows from ``pos`` on: another model writes there."""
        del self._rows[pos:]

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Pending:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.submit`; rows count when their step has ended well."""
        known = len(self._rows) >= pos
        del self._rows[pos:]
        step = self.model.submit(ids, pos, outputs, last)
        if known:
            self._rows += ids
        return _Kept(step, self._rows, pos)


class _Kept:
    """A step whose rows are forgotten where it fails; implements the Pending protocol."""

    def __init__(self, step: Pending, rows: list[int], pos: int) -> None:
        self._step, self._rows, self._pos = step, rows, pos

    def result(self) -> Outputs:
        try:
            return self._step.result()
        except BaseException:
            del self._rows[self._pos :]
            raise


def kept_prefixes(models: Models) -> Models:
    """The models, each with what its cache holds; a drafter in the target's cache has none."""
    target, draft = KeptPrefix(models.target), models.draft
    if isinstance(draft, SharedRows):
        return Models(target, SharedRows(draft.model, target.forget))
    return Models(target, None if draft is None else KeptPrefix(draft))
