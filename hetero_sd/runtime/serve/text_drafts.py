"""Drafts of one text of a batch: what they can be made from, and those from what its slot has read and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from costmodel.batch_drafts import MOST_DRAFTED
from costmodel.draft_rows import NOTHING, Offer
from hetero_sd.runtime.decode.drafters.ngram import source
from hetero_sd.runtime.decode.drafters.ngram_pool import Match, NgramPool
from hetero_sd.runtime.serve.branches import Acceptances, SecondChoice

POOL_TOKENS = 1 << 14  # that a slot remembers
EXPECTED, WEIGHT = 0.5, 2.0  # acceptance of a source that was not seen, and judged tokens that it counts for


class Drafts(Protocol):
    """Drafts of a text, and how often they were accepted.

    Attributes:
        drafted: the drafts that are verified now.
        branch: what may follow instead of the first of them, where that is known.
    """

    drafted: list[int]
    branch: Sequence[int]

    @property
    def source(self) -> str:
        """What they were made from, "" without any."""

    def offer(self, tokens: Sequence[int], most: int, branches: bool = False) -> Offer:
        """What could be drafted after a text, at most so many tokens, and in a branch where there can be one."""

    def learn(self, tokens: Sequence[int], at: int) -> None:
        """What followed a text, which has `at` tokens with it; there are no drafts now."""


class TextDrafts:
    """What followed the last tokens of the text where they stood before; implements the Drafts protocol."""

    def __init__(self, pool: NgramPool, second: dict[str, SecondChoice]) -> None:
        """Begin a text; the pool is that of its slot, second choices are those of all texts, by source."""
        self._pool, self._second, self._added = pool, second, 0
        self._match: Match | None = None
        self.drafted: list[int] = []
        self.branch: Sequence[int] = ()
        self._seen: dict[str, Acceptances] = {}
        pool.begin()

    @property
    def source(self) -> str:
        """See :attr:`Drafts.source`."""
        return source(self._match.length) if self._match is not None and self.drafted else ""

    def offer(self, tokens: Sequence[int], most: int, branches: bool = False) -> Offer:
        """See :meth:`Drafts.offer`."""
        for token in tokens[self._added :]:
            self._pool.add(token)
        self._added = len(tokens)
        self._match = self._pool.search(min(most, MOST_DRAFTED)) if most > 0 else None
        self.branch = ()
        if self._match is None:
            return NOTHING
        if branches:
            self.branch = self._pool.otherwise(self._match, min(most, MOST_DRAFTED))
        seen = self._acceptances(source(self._match.length), len(tokens))
        return Offer(seen.alpha, len(self._match.tokens), beta=seen.beta, most_in_branch=len(self.branch))

    def _acceptances(self, name: str, at: int) -> Acceptances:
        if name not in self._seen:
            second = self._second.setdefault(name, SecondChoice())
            self._seen[name] = Acceptances(EXPECTED, WEIGHT, at, second)
        return self._seen[name]

    def take(self, gamma: int) -> None:
        """Have so many of what was offered verified."""
        self.drafted = self._match.tokens[:gamma] if self._match is not None else []

    def learn(self, tokens: Sequence[int], at: int) -> None:
        """See :meth:`Drafts.learn`."""
        if self.drafted:
            self._seen[self.source].learn(self.drafted, self.branch, tokens, at)
        self.drafted, self.branch = [], ()
