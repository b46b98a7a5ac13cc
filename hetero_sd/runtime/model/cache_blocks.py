"""Which blocks of rows the slots have, and which of them are in common: counted references, and copies before writes.

A slot writes rows after its text only. So of its blocks those that are full may be others', too; before a text is cut
within a block that is not the slot's alone, the slot gets another one with a copy of the rows that stay. Texts that
lose their slot keep full blocks while there are any to spare: the text that was not used for longest goes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hetero_sd.runtime.model.protocol import SlotCache

_MAPPED_AT_ONCE = 4  # blocks of a slot that follows another one


@dataclass
class _Kept:
    """A text without a slot, the rows of whose tokens are in full blocks; and when it was used, by a count."""

    tokens: list[int]
    blocks: list[int]
    used: int


class CacheBlocks:
    """The blocks of a cache, and the slots that have them."""

    def __init__(self, cache: SlotCache, kept_rows: int = 0) -> None:
        """Every slot has its first blocks; ``kept_rows`` more may be in use than the slots have."""
        self._cache, self._rows, each = cache, cache.block_rows, cache.blocks_of_slot
        self._mapped = [list(range(slot * each, (slot + 1) * each)) for slot in range(cache.slots)]
        if cache.block_rows < cache.context:  # whoever had the cache before may have left others
            for slot, blocks in enumerate(self._mapped):
                cache.map(slot, 0, blocks)
        own = cache.slots * each
        more = kept_rows // self._rows if self._rows < cache.context else 0
        self._references = Counter(range(own))
        self._spare = set(range(own, min(own + more, cache.blocks)))
        self._kept: list[_Kept] = []

    @property
    def kept_rows(self) -> int:
        """Rows of texts without a slot that no slot has."""
        return self._rows * len(self._of_kept_alone(self._kept))

    @property
    def rows_in_common(self) -> int:
        """Rows that slots would need more if each had its own."""
        blocks = [block for mapped in self._mapped for block in mapped]
        return self._rows * (len(blocks) - len(set(blocks)))

    def held(self, ids: Sequence[int]) -> int:
        """The most of the first ``ids`` that a text without a slot holds, in full blocks."""
        return max((self._in_blocks(text, ids) for text in self._kept), default=0)

    def touch(self, ids: Sequence[int], used: int) -> None:
        """Say when the text without a slot was used that holds most of ``ids``."""
        if self._kept:
            text = max(self._kept, key=lambda text: self._in_blocks(text, ids))
            text.used = used if self._in_blocks(text, ids) else text.used

    def _in_blocks(self, text: _Kept, ids: Sequence[int]) -> int:
        full = 0
        while full < len(text.tokens) and text.tokens[full : full + self._rows] == list(ids[full : full + self._rows]):
            full += self._rows
        return full

    def share(self, source: int, slot: int, begin: int, end: int) -> None:
        """Give a slot, which has the same rows up to ``begin``, those of another one up to ``end``."""
        first, full = begin // self._rows, end // self._rows
        self._put(slot, first, self._mapped[source][first:full])
        begin = max(begin, full * self._rows)
        if begin < end:
            self._cache.copy(source, slot, begin, end)

    def follow(self, source: int, slot: int, begin: int, end: int) -> None:
        """The same where the slot gets a few rows more again and again: so few are copied, and blocks mapped later.

        To map a block takes ten times as long as to copy rows, and several that lie in order take no longer than one.
        """
        mapped, others, full = self._mapped[slot], self._mapped[source], end // self._rows
        first = next((index for index in range(full) if mapped[index] != others[index]), full)
        if full - first >= _MAPPED_AT_ONCE:
            self._put(slot, first, others[first:full])
            begin = max(begin, full * self._rows)
        if begin < end:
            self._cache.copy(source, slot, begin, end)

    def take_kept(self, slot: int, ids: Sequence[int], begin: int, end: int) -> int:
        """The same of a text without a slot; returns where its rows in full blocks end, at ``end`` at most."""
        text = max(self._kept, key=lambda text: self._in_blocks(text, ids))
        first, full = begin // self._rows, end // self._rows
        self._put(slot, first, text.blocks[first : full + (end % self._rows > 0)])
        if end % self._rows:
            self._make_own(slot, full, end % self._rows)
        return end

    def cut(self, slot: int, tokens: Sequence[int], rows: int, used: int) -> None:
        """Let a slot write from ``rows`` on, whose text was ``tokens``; its full blocks are kept where that can be.

        Texts that were used before ``used`` make room.
        """
        first, mapped = rows // self._rows, self._mapped[slot]
        self._keep(tokens, first, mapped, used)
        for index in range(first, len(mapped)):
            if self._references[mapped[index]] > 1:
                self._make_own(slot, index, rows % self._rows if index == first else 0)

    def _keep(self, tokens: Sequence[int], first: int, blocks: Sequence[int], used: int) -> None:
        """Keep full blocks of a text, as many as there are others for: of which from ``first`` on the slot needs."""
        if self._rows == self._cache.context:
            return
        older = [text for text in self._kept if text.used < used]
        full, room = len(tokens) // self._rows, len(self._spare) + len(self._of_kept_alone(older))
        needed, most = 0, first
        while most < full and (needed := needed + (self._references[blocks[most]] == 1)) <= room:
            most += 1
        kept = list(tokens[: most * self._rows])
        if most == first or self.held(kept) == len(kept):
            return
        needed = sum(self._references[block] == 1 for block in blocks[first:most])
        while needed > len(self._spare):
            self._drop_one()
        self._kept.append(_Kept(kept, list(blocks[:most]), used))
        self._references.update(blocks[:most])

    def _of_kept_alone(self, texts: Sequence[_Kept]) -> set[int]:
        """Blocks that would be spare without these texts."""
        counts = Counter(block for text in texts for block in text.blocks)
        return {block for block, count in counts.items() if count == self._references[block]}

    def _drop_one(self) -> None:
        text = min(self._kept, key=lambda text: text.used)
        self._kept.remove(text)
        self._release(text.blocks)

    def _make_own(self, slot: int, index: int, rows: int) -> None:
        """Put a block that no other has in place of a slot's, with a copy of its first rows."""
        begin = index * self._rows
        found = self._cache.read(slot, begin, begin + rows) if rows else []
        while not self._spare and self._references[self._mapped[slot][index]] > 1:
            self._drop_one()  # where slots have blocks in common there are spare ones, or texts that have them
        if self._references[self._mapped[slot][index]] == 1:
            return
        home = slot * self._cache.blocks_of_slot + index  # its neighbours are next to it: they are one mapping
        block = home if home in self._spare else min(self._spare)
        self._put(slot, index, [block])
        if rows:
            self._cache.write(slot, begin, found)

    def _put(self, slot: int, first: int, blocks: Sequence[int]) -> None:
        if not blocks:
            return
        self._cache.map(slot, first, blocks)
        mapped = self._mapped[slot]
        self._references.update(blocks)
        self._spare -= set(blocks)
        before, mapped[first : first + len(blocks)] = mapped[first : first + len(blocks)], blocks
        self._release(before)

    def _release(self, blocks: Sequence[int]) -> None:
        """Count a reference less of each block."""
        for block in blocks:
            self._references[block] -= 1
            if not self._references[block]:
                del self._references[block]
                self._spare.add(block)
