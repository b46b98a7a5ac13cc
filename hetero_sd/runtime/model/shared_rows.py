"""First layers in the KV cache of their whole model: what the target has read, its early exit need not read.

The layers that both have compute the same rows. Those of a draft are written by the first layers and, with the same
tokens or with others, again by the target, which verifies from the first of them on: it never reads a row that only the
drafter wrote. While drafter and target work at the same time each needs rows of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hetero_sd.runtime.model.protocol import CHOICE, Model, Models, Pending
from targets.backend import HOST


class SharedRows(Model):
    """A drafter that writes into the target's cache; implements the Model protocol."""

    def __init__(self, model: Model, forget: Callable[[int], None] = lambda pos: None) -> None:
        """Wrap the drafter; ``forget`` is told from which row on the target must not count on its rows."""
        self.model, self._forget = model, forget
        self.vocab, self.context, self.name = model.vocab, model.context, model.name

    @property
    def processor(self) -> str:
        """See :attr:`hetero_sd.runtime.model.model.CompiledModel.processor`; the CPU's for a model that has none."""
        return str(getattr(self.model, "processor", HOST))

    @property
    def thread_facts(self) -> dict[str, Any] | None:
        """See :attr:`hetero_sd.runtime.model.model.CompiledModel.thread_facts`; None for a model that has none."""
        facts: dict[str, Any] | None = getattr(self.model, "thread_facts", None)
        return facts

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Pending:
        """See :meth:`hetero_sd.runtime.model.protocol.Model.submit`."""
        self._forget(pos)
        return self.model.submit(ids, pos, outputs, last)


def with_shared_rows(models: Models, loaded: Models) -> Models:
    """The models, the drafter in the target's cache where it is an early exit of it.

    Args:
        models: as they are used.
        loaded: the same as they were loaded.
    """
    share = getattr(loaded.draft, "share_rows", None)
    if models.draft is None or share is None or not share(loaded.target):
        return models
    return Models(models.target, SharedRows(models.draft))
