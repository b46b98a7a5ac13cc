"""The requests that a batch is answering, and their choices, each in a slot of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hetero_sd.runtime.model.slot_pool import Slot
from hetero_sd.runtime.serve.jobs import EngineJob
from hetero_sd.runtime.serve.round_drafts import Sources
from hetero_sd.runtime.serve.running_text import RunningText


@dataclass(eq=False)
class Asked:
    """A request at work, and how many of its choices were begun and have ended."""

    job: EngineJob
    ids: Sequence[int]
    deadline_s: float
    begun: int = 0
    ended: int = 0


@dataclass(frozen=True, eq=False)
class AtWork:
    """A choice that is generated in a slot; and texts that came before, with the rows that it will have of theirs."""

    asked: Asked
    slot: Slot
    choice: int
    text: RunningText
    sources: Sources
    behind: list[tuple[AtWork, int]]

    def waits(self, at_work: Sequence[AtWork]) -> bool:
        """Whether a text that came before is reading rows that this one will take over."""
        past = self.text.past
        if any(past < rows and other in at_work and other.text.past < rows for other, rows in self.behind):
            return True
        self.behind.clear()
        return False
