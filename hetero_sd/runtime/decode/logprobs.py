"""How probable the target found the tokens of a text, and which tokens it found more probable.

Probabilities are the target's own: the softmax of its logits, before temperature, top-k and top-p. They are those of
the same row whether the token was drafted and verified or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MOST_TOP = 20  # as in OpenAI's


class TokenLogprob(NamedTuple):
    """A token, the logarithm of its probability, and the same of the most probable tokens, falling."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Logprobs:
    """Those of a text's tokens, in order.

    Attributes:
        top: most probable tokens that are kept for each.
        of: what is known of each token.
    """

    def __init__(self, top: int) -> None:
        """Of no token yet."""
        self.top, self.of = top, list[TokenLogprob]()

    def add(self, rows: npt.NDArray[Any], tokens: Sequence[int]) -> None:
        """Note the tokens that were chosen after the first rows of logits, one after each."""
        self.of += [_of_row(row, token, self.top) for row, token in zip(rows, tokens, strict=False)]


def _of_row(row: npt.NDArray[Any], token: int, top: int) -> TokenLogprob:
    logits = row.astype(np.float64)
    logits -= logits.max()
    total = math.log(float(np.exp(logits).sum()))
    best: list[tuple[int, float]] = []
    if top:
        count = min(top, len(logits))
        least = np.partition(logits, len(logits) - count)[len(logits) - count]
        found = np.flatnonzero(logits >= least)  # more where the last ones are equal: the lower ids count
        chosen = found[np.argsort(-logits[found], kind="stable")][:count]
        best = [(int(i), float(logits[i]) - total) for i in chosen]
    return TokenLogprob(token, float(logits[token]) - total, tuple(best))


def entropy_bits(logprobs: Sequence[TokenLogprob]) -> float:
    """Mean entropy of the tokens, in bits, each over the most probable tokens that are kept of it.

    These are taken for all there are: their probabilities are scaled to a sum of 1 (arXiv 2511.02309).
    """
    if not logprobs:
        return 0.0
    total = 0.0
    for one in logprobs:
        p = np.exp(np.array([logprob for _, logprob in one.top]))
        p /= p.sum()
        total -= float((p * np.log2(p, out=np.zeros_like(p), where=p > 0)).sum())
    return total / len(logprobs)
