"""Which slots of a model are free, what text each of them holds, and which rows they have in common.

A row depends on the tokens up to it alone, bit for bit however they were fed (protocol.py). So what one text has read
another one that begins with the same tokens need not read: it takes the rows over. Whole blocks are shared
(cache_blocks.py), the rows of the last block that both have are copied. A sequence takes the free slot that holds most
of its beginning, and the beginnings of texts that lose their slot are kept while there are blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

from costmodel.batch import LEAST_SHARED
from hetero_sd.runtime.model.cache_blocks import CacheBlocks
from hetero_sd.runtime.model.protocol import Slots


class Slot:
    """A slot that a sequence has taken.

    Attributes:
        number: of the slot.
        model: of the sequence alone.
        tokens: whose rows are whole; only a SlotPool makes them fewer.
        used: when it was taken, by a count.
    """

    def __init__(self, slots: Slots, number: int) -> None:
        """Nothing is known of its rows."""
        self.number, self.model = number, slots.slot(number)
        self.tokens: list[int] = []
        self.used = 0

    def held(self, ids: Sequence[int]) -> int:
        """How many of the first ``ids`` it holds."""
        return common(self.tokens, ids)

    def exchange(self, other: Slot) -> None:
        """Let each go on in the rows of the other one, which hold the same tokens."""
        self.number, other.number = other.number, self.number
        self.model, other.model = other.model, self.model


class SlotPool:
    """The slots of a model."""

    def __init__(self, slots: Slots, kept_rows: int = 0) -> None:
        """All of them are free; nothing else feeds the model from here on.

        Args:
            slots: of the model.
            kept_rows: for texts that have no slot any more, beside what sharing saves.
        """
        self.every = [Slot(slots, number) for number in range(slots.slots)]
        self._free = [*self.every]
        self._blocks = None if slots.cache is None else CacheBlocks(slots.cache, kept_rows)
        self._count = 0
        self._branches = dict[Slot, Slot]()  # the last branch of each
        self.shared_rows = 0  # that were taken over from other slots so far

    @property
    def free(self) -> int:
        """How many are."""
        return len(self._free)

    @property
    def kept_rows(self) -> int:
        """Rows that hold a text, of all slots; those that several have in common count once."""
        rows = sum(len(slot.tokens) for slot in self.every)
        return rows if self._blocks is None else rows - self._blocks.rows_in_common + self._blocks.kept_rows

    def take(self, ids: Sequence[int]) -> Slot:
        """A free slot for a text that begins with ``ids``, of which there must be one.

        It keeps the rows of their common beginning, less the last of ``ids``, which gives the next token; of slots that
        hold equally much the one is taken that loses least, or else was not used for longest. Rows that others hold
        are had by `share`.
        """
        elsewhere = self._most_held(ids)[0]
        found = max(self._free, key=lambda slot: (self._of_own(slot, ids, elsewhere), -self._alone(slot), -slot.used))
        self._free.remove(found)
        self._count += 1
        rows = min(found.held(ids), len(ids) - 1)
        if self._blocks is not None and rows < len(found.tokens):
            self._blocks.touch(ids, self._count)
        self._cut(found, rows)
        return found

    def _cut(self, slot: Slot, rows: int) -> None:
        """Let a slot that was just taken go on after so many rows."""
        if self._blocks is not None and rows < len(slot.tokens):
            self._blocks.cut(slot.number, slot.tokens, rows, slot.used)
        del slot.tokens[rows:]
        slot.used = self._count

    @property
    def free_for_branches(self) -> int:
        """How many are free and can have the rows of others."""
        return len(self._free) if self._blocks is not None else 0

    def follows(self, slot: Slot) -> bool:
        """Whether the last branch of a slot is free and holds a beginning of its text."""
        last = self._branches.get(slot)
        return last in self._free and last.tokens == slot.tokens[: len(last.tokens)]

    def branch(self, slot: Slot) -> Slot:
        """A free slot that has all rows of another one from here on; `free_for_branches` says that there is one.

        It is the last branch of that slot, which lacks few of them, or else the one that loses least.
        """
        assert self._blocks is not None
        last = self._branches.get(slot)
        found = last if last in self._free else min(self._free, key=lambda free: (self._alone(free), free.used))
        self._free.remove(found)
        self._branches[slot] = found
        self._count += 1
        own, rows = found.held(slot.tokens), len(slot.tokens)
        self._cut(found, own)
        if own < rows:
            self._blocks.follow(slot.number, found.number, own, rows)
            found.tokens += slot.tokens[own:]
        return found

    def _of_own(self, slot: Slot, ids: Sequence[int], elsewhere: int) -> int:
        """Rows that only this slot saves; a little more than others hold is not worth the text that it holds."""
        held = slot.held(ids)
        return held if held >= elsewhere or self._blocks is None else 0

    def _alone(self, slot: Slot) -> int:
        """Rows of a text that is lost with a slot; those of a branch, which others have too, are not."""
        tokens, others = slot.tokens, (other for other in self.every if other is not slot)
        return 0 if any(other.tokens[: len(tokens)] == tokens for other in others) else len(tokens)

    def share(self, slot: Slot, ids: Sequence[int]) -> int:
        """Take over rows of the beginning of ``ids`` that others hold, less the last of them; how many there were."""
        if self._blocks is None:
            return 0
        rows, source = self._most_held(ids)
        rows, own = min(rows, len(ids) - 1), len(slot.tokens)
        if rows < own + LEAST_SHARED or slot.tokens != list(ids[:own]):
            return 0
        if source is None:
            rows = self._blocks.take_kept(slot.number, ids, own, rows)
        else:
            self._blocks.share(source.number, slot.number, own, rows)
        slot.tokens[own:] = ids[own:rows]
        self.shared_rows += rows - own
        return rows - own

    def worth_waiting_for(self, ids: Sequence[int], others: Sequence[int]) -> int:
        """Rows of a text with these ``ids`` that one with ``others`` will hold; 0 where `share` has none of them."""
        rows = min(common(others, ids), len(ids) - 1)
        return rows if self._blocks is not None and rows >= LEAST_SHARED else 0

    def _most_held(self, ids: Sequence[int]) -> tuple[int, Slot | None]:
        """The most of the first ``ids`` that is held, and the slot that does; None for a text that has none."""
        source = max(self.every, key=lambda slot: slot.held(ids))
        kept = 0 if self._blocks is None else self._blocks.held(ids)
        held = source.held(ids)
        return (held, source) if held >= kept else (kept, None)

    def give_back(self, slot: Slot) -> None:
        """A sequence ends; its rows are kept until another one needs them."""
        self._free.append(slot)


def common(tokens: Sequence[int], ids: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    same = min(len(tokens), len(ids))
    if tokens[:same] == ids[:same]:
        return same
    same = 0
    for token, other in zip(tokens, ids, strict=False):
        if token != other:
            break
        same += 1
    return same
