"""Drafts of one text of a batch: what they can be made from, and those from what its slot has read and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from costmodel.batch_drafts import MOST_DRAFTED, NOTHING, Offer
from hetero_sd.runtime.decode.drafters.ngram import source
from hetero_sd.runtime.decode.drafters.ngram_pool import Match, NgramPool
from hetero_sd.runtime.decode.live_acceptance import LiveAcceptance

POOL_TOKENS = 1 << 14  # that a slot remembers
EXPECTED, WEIGHT = 0.5, 2.0  # acceptance of a source that was not seen, and judged tokens that it counts for


class Drafts(Protocol):
    """Drafts of a text, and how often they were accepted.

    Attributes:
        drafted: the drafts that are verified now.
    """

    drafted: list[int]

    @property
    def source(self) -> str:
        """What they were made from, "" without any."""

    def offer(self, tokens: Sequence[int], most: int) -> Offer:
        """What could be drafted after a text, at most so many tokens."""

    def learn(self, accepted: int, tokens: int) -> None:
        """How many of the drafts were accepted, after so many tokens of text; there are none now."""


class TextDrafts:
    """What followed the last tokens of the text where they stood before; implements the Drafts protocol."""

    def __init__(self, pool: NgramPool) -> None:
        """Begin a text; the pool is that of its slot."""
        self._pool, self._added = pool, 0
        self._match: Match | None = None
        self.drafted: list[int] = []
        self._seen: dict[str, LiveAcceptance] = {}
        pool.begin()

    @property
    def source(self) -> str:
        """See :attr:`Drafts.source`."""
        return source(self._match.length) if self._match is not None and self.drafted else ""

    def offer(self, tokens: Sequence[int], most: int) -> Offer:
        """See :meth:`Drafts.offer`."""
        for token in tokens[self._added :]:
            self._pool.add(token)
        self._added = len(tokens)
        self._match = self._pool.search(min(most, MOST_DRAFTED)) if most > 0 else None
        if self._match is None:
            return NOTHING
        seen = self._seen.setdefault(source(self._match.length), LiveAcceptance(EXPECTED, WEIGHT, len(tokens)))
        return Offer(seen.mean, len(self._match.tokens))

    def take(self, gamma: int) -> None:
        """Have so many of what was offered verified."""
        self.drafted = self._match.tokens[:gamma] if self._match is not None else []

    def learn(self, accepted: int, tokens: int) -> None:
        """See :meth:`Drafts.learn`."""
        if self.drafted:
            self._seen[self.source].observe(accepted, len(self.drafted), tokens)
        self.drafted = []
