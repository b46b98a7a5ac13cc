"""From logits to a distribution (temperature, top-k, top-p), and the random choices made with it.

Speculative sampling gives the target's law only if the drafter's and the target's logits go through the same
processing, so both use :func:`probabilities` with one :class:`Sampling`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hetero_sd.runtime.model.protocol import NotFiniteError

Distribution = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; temperature 0 is greedy, top_k 0 and top_p 1 switch those filters off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """True where the best id is taken without any random choice."""
        return self.temperature == 0.0


def probabilities(logits: npt.NDArray[np.floating], sampling: Sampling) -> Distribution:
    """Return the processed distribution of one row of logits, float64 ``[vocab]`` with sum 1.

    Order: temperature, top-k, softmax, top-p, renormalisation. Ties at a cut are decided for the lower id, so the
    number of ids kept is exact. One row at a time: the order of summation must not depend on neighbouring rows.

    Raises:
        NotFiniteError: the logits hold NaN, infinity or no finite value, which a correctly compiled model never gives.
    """
    best = float(logits.max())
    if not np.isfinite(best):
        raise NotFiniteError("model")
    ids = _best_ids(logits, sampling.top_k) if 0 < sampling.top_k < len(logits) else np.arange(len(logits))
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf
        p = np.exp((logits[ids].astype(np.float64) - best) / sampling.temperature)
    p /= p.sum()
    if sampling.top_p < 1.0:
        nucleus = _nucleus(p, sampling.top_p)
        ids, p = ids[nucleus], p[nucleus]
        p /= p.sum()
    out = np.zeros(len(logits))
    out[ids] = p
    return out


def best_probability(logits: npt.NDArray[np.floating], best: int) -> float:
    """Return the probability of the best id at temperature 1: 1 / sum(exp(l - l[best])), in float32."""
    shifted = logits - logits[best]
    return 1.0 / float(np.exp(shifted, out=shifted).sum())


def _best_ids(logits: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.intp]:
    """Rising ids of the ``count`` highest logits; among equal ones the lower id is kept."""
    threshold = np.partition(logits, len(logits) - count)[len(logits) - count]
    above = np.flatnonzero(logits > threshold)
    ties = np.flatnonzero(logits == threshold)
    return np.sort(np.concatenate([above, ties[: count - len(above)]]))


def _nucleus(p: Distribution, top_p: float) -> npt.NDArray[np.intp]:
    """Ids of the shortest prefix, by falling probability, whose mass reaches ``top_p``; at least one id.

    Only the highest values are sorted, more of them until they hold the mass: the prefix sums are added in the
    same order whatever the number, so the answer does not depend on it.
    """
    count = 2048
    while True:
        count = min(count, len(p))
        threshold = np.partition(p, len(p) - count)[len(p) - count]
        candidates = np.flatnonzero(p >= threshold)
        candidates = candidates[np.argsort(-p[candidates], kind="stable")]
        reached = np.flatnonzero(np.cumsum(p[candidates]) >= top_p)
        if len(reached):
            return candidates[: reached[0] + 1]
        if count == len(p):
            return candidates
        count *= 8


class Rng:
    """All random choices of a generation, from one seeded PCG64 stream."""

    def __init__(self, seed: int | Sequence[int]) -> None:
        """Start the stream of ``seed``, one number or several."""
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def draw(self, weights: Distribution) -> int:
        """Return an id with probability proportional to its weight; an id of weight 0 is never returned."""
        cumulative = np.cumsum(weights)
        chosen = int(np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right"))
        if chosen == len(weights):  # the product was rounded up to the total
            chosen = int(np.flatnonzero(weights)[-1])
        return chosen

    def accept(self, p: float, q: float) -> bool:
        """Return True with probability min(1, p/q), for q > 0."""
        return bool(self._generator.random() * q < p)
