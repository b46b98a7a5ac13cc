"""Drafts of one text of a batch, from what its slot has read and written, and how often they were accepted."""

from __future__ import annotations

from collections.abc import Sequence

from costmodel.batch_drafts import Offer
from hetero_sd.runtime.decode.drafters.ngram import source
from hetero_sd.runtime.decode.drafters.ngram_pool import Match, NgramPool
from hetero_sd.runtime.decode.live_acceptance import LiveAcceptance

MOST_DRAFTED = 7  # tokens of a text in a round
POOL_TOKENS = 1 << 14  # that a slot remembers
_EXPECTED, _WEIGHT = 0.5, 2.0  # acceptance of a source that was not seen, and judged tokens that it counts for
_NOTHING = Offer(0.0, 0)


class TextDrafts:
    """What followed the last tokens of the text where they stood before."""

    def __init__(self, pool: NgramPool) -> None:
        """Begin a text; the pool is that of its slot."""
        self._pool, self._added = pool, 0
        self._match: Match | None = None
        self._drafted: list[int] = []
        self._seen: dict[str, LiveAcceptance] = {}
        pool.begin()

    @property
    def source(self) -> str:
        """What the last drafts were made from, "" without any."""
        return source(self._match.length) if self._match is not None and self._drafted else ""

    def offer(self, tokens: Sequence[int], most: int) -> Offer:
        """What could be drafted after a text, at most so many tokens."""
        for token in tokens[self._added :]:
            self._pool.add(token)
        self._added = len(tokens)
        self._match = self._pool.search(min(most, MOST_DRAFTED)) if most > 0 else None
        if self._match is None:
            return _NOTHING
        seen = self._seen.setdefault(source(self._match.length), LiveAcceptance(_EXPECTED, _WEIGHT, len(tokens)))
        return Offer(seen.mean, len(self._match.tokens))

    def take(self, gamma: int) -> list[int]:
        """So many of what was offered."""
        self._drafted = self._match.tokens[:gamma] if self._match is not None else []
        return self._drafted

    def learn(self, accepted: int, tokens: int) -> None:
        """How many of those taken were accepted, after so many tokens of text."""
        if self._drafted:
            self._seen[self.source].observe(accepted, len(self._drafted), tokens)
        self._drafted = []
