"""The fastest overlapped rounds of each kind while inputs move: threads and draft length climb from the last best.

All of them would be hundreds of rounds at each value. Those that are far from the fastest way at a value are priced as
they were last, once each. Climbing may end too early: where it matters, `look_at_all` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from costmodel.decoder import DecoderSpec
from costmodel.placement import Placement
from costmodel.processor import Processor
from costmodel.question import Variant
from costmodel.schema.plan import OVERLAPPED
from costmodel.search import Search

_NEAR = 0.85  # of the fastest way's speed, from where on a kind is climbed


Kind = tuple[int, int, str, str]  # ids of target and drafter, and the processors' families


class _At(NamedTuple):
    """Where a climb stands: threads of target and drafter, and the draft length."""

    threads: tuple[int, int]
    gamma: int


class OverlappedWays:
    """The kinds of overlapped rounds that a question allows and that fit the memory."""

    def __init__(self, search: Search) -> None:
        """Find the fastest of each kind for the question as it is."""
        self._gammas = {gamma for gamma in search.question.gammas if gamma > 0}
        self._pairs: dict[Kind, dict[tuple[int, int], tuple[Placement, Placement]]] = {}
        self._models: dict[Kind, tuple[DecoderSpec, DecoderSpec]] = {}
        self._starts: dict[Kind, list[_At]] = {}  # of climbs
        self._last: dict[Kind, _At] = {}
        for target, draft in search.overlapped_models():
            for here, there in search.overlapped_pairs(target, draft):
                a, b = here.segments[0].processor, there.segments[0].processor
                key = id(target), id(draft), a.family, b.family
                self._models[key] = target, draft
                self._pairs.setdefault(key, {})[a.threads, b.threads] = here, there
        first = self._gammas & {1, 2, 4} or self._gammas
        for key, pairs in self._pairs.items():
            found = [(self._price(search, key, at), at) for t in pairs for g in sorted(first) for at in [_At(t, g)]]
            fits = [(v, at) for v, at in found if v.memory.total_bytes <= search.free_bytes]
            if fits:
                self._last[key] = max(fits, key=lambda way: way[0].tokens_per_s)[1]
                self._starts[key] = [self._last[key]]

    def look_at_all(self, search: Search, least: float) -> bool:
        """Whether any, with the factors and the acceptance of `search`, is faster than `least` tokens/s.

        From the fastest of its kind `fastest` climbs, too, from then on.
        """
        best: dict[Kind, Variant] = {}
        for variant in search.overlapped(least):
            here, there = _processors(variant)
            key = id(variant.target), id(variant.draft), here.family, there.family
            faster = variant.tokens_per_s > least and key in self._starts
            if faster and (key not in best or variant.tokens_per_s > best[key].tokens_per_s):
                best[key] = variant
        for key, variant in best.items():
            here, there = _processors(variant)
            self._starts[key].append(_At((here.threads, there.threads), variant.gamma))
        return bool(best)

    def fastest(self, search: Search, least: float) -> Iterator[Variant]:
        """One of each kind with the factors and the acceptance of `search`, where others have `least` tokens/s."""
        found = {}
        for key, starts in self._starts.items():
            tried = [(self._price(search, key, at), at) for at in dict.fromkeys([*starts, self._last[key]])]
            found[key], self._last[key] = max(tried, key=lambda way: way[0].tokens_per_s)
        near = _NEAR * max(least, *(v.tokens_per_s for v in found.values()), 0.0)
        for key, variant in found.items():
            yield self._climbed(search, key, variant) if variant.tokens_per_s >= near else variant

    def _climbed(self, search: Search, key: Kind, best: Variant) -> Variant:
        tried = {self._last[key]}
        while True:
            at = self._last[key]
            beside = [_At((at.threads[0] + i, at.threads[1] + j), at.gamma) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            beside += [_At(at.threads, at.gamma + by) for by in (-1, 1)]
            new = [a for a in beside if a not in tried and a.threads in self._pairs[key] and a.gamma in self._gammas]
            tried.update(new)
            found = [(self._price(search, key, a), a) for a in new]
            variant, at = max(found, key=lambda way: way[0].tokens_per_s, default=(best, at))
            if variant.tokens_per_s <= best.tokens_per_s:
                return best
            best, self._last[key] = variant, at

    def _price(self, search: Search, key: Kind, at: _At) -> Variant:
        target, draft = self._models[key]
        here, there = self._pairs[key][at.threads]
        return search.price(OVERLAPPED, target, here, draft, there, at.gamma)


def _processors(variant: Variant) -> tuple[Processor, Processor]:
    assert variant.draft_placement is not None
    return variant.target_placement.segments[0].processor, variant.draft_placement.segments[0].processor
