"""Drafting without a model: what followed the last tokens where they stood before (prompt lookup, arXiv 2304.04487).

The pool is of the whole process, so that answers profit from earlier ones (SuffixDecoding, arXiv 2411.04975, has the
idea). Longer matches are accepted more often: each class of lengths is a source of its own, whose draft length a policy
can learn. That length is how confident it is; its tokens are found all at once, so that none of them can be saved. A
round without a match is a plain step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hetero_sd.runtime.decode.drafters import Draft, Drafter, GoOn, Offer
from hetero_sd.runtime.decode.drafters.ngram_pool import SHORTEST, Match, NgramPool
from hetero_sd.runtime.decode.sampling import Rng, Sampling
from hetero_sd.runtime.decode.trace import Stopwatch

MOST = 16  # drafted tokens
_CLASSES = (5, 3, SHORTEST)  # least lengths of a match


class NgramDrafter(Drafter):
    """Drafts from a pool, to which it adds the text."""

    lost = None  # it cannot fail

    def __init__(self, pool: NgramPool, target_vocab: int, sampling: Sampling) -> None:
        """Start a text; ``pool`` holds tokens of the same target."""
        self._pool, self._vocab, self._sampling = pool, target_vocab, sampling
        self._added = 0
        self._match: Match | None = None
        pool.begin()

    def offers(self, tokens: Sequence[int], watch: Stopwatch) -> Sequence[Offer]:
        """Add what is new, and search; see :class:`Drafter`."""
        for token in tokens[self._added :]:
            self._pool.add(token)
        self._added = len(tokens)
        self._match = self._pool.search(MOST)
        watch.book("draft")
        if self._match is None:
            return []
        return [Offer(source(self._match.length), len(self._match.tokens))]

    def read(self, tokens: Sequence[int], most: int, skip: int, watch: Stopwatch) -> int:
        """Nothing is left to read."""
        return 0

    def propose(
        self, tokens: Sequence[int], source: str, gamma: int, watch: Stopwatch, rng: Rng, go_on: GoOn | None = None
    ) -> Draft:
        """Return what was found; it was drawn from a distribution with one token of probability 1."""
        drafted = self._match.tokens[:gamma] if self._match else []
        q = []
        for token in [] if self._sampling.greedy else drafted:
            q.append(np.zeros(self._vocab))
            q[-1][token] = 1.0
        watch.book("draft")
        return Draft(drafted, q)

    def keep(self, length: int) -> None:
        """Only what was accepted comes to the pool, with the next text."""


def source(length: int) -> str:
    """The name of the source for a match of so many tokens."""
    return f"ngram-{next(least for least in _CLASSES if length >= least)}"
