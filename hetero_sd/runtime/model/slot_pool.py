"""Which slots of a model are free, and what text each of them holds.

A sequence takes the free slot that holds most of its beginning, so that turns of a conversation are read from where
they are new (as kept_prefix.py does for one sequence).
"""

from __future__ import annotations

from collections.abc import Sequence

from hetero_sd.runtime.model.protocol import Slots


class Slot:
    """A slot that a sequence has taken.

    Attributes:
        number: of the slot.
        model: of the sequence alone.
        tokens: whose rows are whole.
    """

    def __init__(self, slots: Slots, number: int) -> None:
        """Nothing is known of its rows."""
        self.number, self.model = number, slots.slot(number)
        self.tokens: list[int] = []

    def held(self, ids: Sequence[int]) -> int:
        """How many of the first ``ids`` it holds."""
        same = 0
        for row, token in zip(self.tokens, ids, strict=False):
            if row != token:
                break
            same += 1
        return same


class SlotPool:
    """The slots of a model."""

    def __init__(self, slots: Slots) -> None:
        """All of them are free; nothing else feeds the model from here on."""
        self.every = [Slot(slots, number) for number in range(slots.slots)]
        self._free = [*self.every]

    @property
    def free(self) -> int:
        """How many are."""
        return len(self._free)

    @property
    def kept_rows(self) -> int:
        """Rows that hold a text, of all slots."""
        return sum(len(slot.tokens) for slot in self.every)

    def take(self, ids: Sequence[int]) -> Slot:
        """A free slot for a text that begins with ``ids``, of which there must be one.

        It keeps the rows of their common beginning, less the last of ``ids``, which gives the next token; of slots that
        hold equally much the one is taken that loses least.
        """
        found = max(self._free, key=lambda slot: (slot.held(ids), -len(slot.tokens)))
        self._free.remove(found)
        del found.tokens[min(found.held(ids), len(ids) - 1) :]
        return found

    def give_back(self, slot: Slot) -> None:
        """A sequence ends; its rows are kept until another one needs them."""
        self._free.append(slot)
