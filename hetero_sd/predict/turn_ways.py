"""Ways to run a pair in turns with whole models, or the target alone: the fastest of a kind while inputs move."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from costmodel.decoder import DecoderSpec
from costmodel.model_costs import ModelCosts
from costmodel.placement import Placement
from costmodel.question import Decision, Variant
from costmodel.schema.plan import OVERLAPPED, TARGET_ONLY
from costmodel.search import Search
from costmodel.speculative import sequential_round

_MOST_GAMMA = 8


def kind(variant: Variant) -> tuple[object, ...]:
    """What a verdict says: draft or not, in which formats, and on which processors."""
    drafter = variant.draft_placement
    families = variant.target_placement.families, () if drafter is None else drafter.families
    return (variant.mode, variant.target.name, *families)


def one_of_each(decision: Decision) -> list[Variant]:
    """The fastest variant of each kind that takes turns with whole models, the chosen one first, whatever it is."""
    found = {kind(decision.best): decision.best}
    for variant in decision.leading:
        drafter = variant.draft_placement
        whole = variant.target_placement.whole and (drafter is None or drafter.whole)
        if whole and variant.mode != OVERLAPPED:
            found.setdefault(kind(variant), variant)
    return list(found.values())


def fastest_in_turns(
    search: Search, costs_of: Callable[[DecoderSpec, Placement], ModelCosts], variant: Variant
) -> float:
    """Tokens/s of a kind of variant with the threads and the draft length that are fastest."""
    q = search.question
    fixed = () if q.gamma is None else (q.gamma,)
    gammas = (0,) if variant.mode == TARGET_ONLY else fixed or tuple(range(1, _MOST_GAMMA + 1))
    speeds = []
    for target_place, draft_place in _placements(search, variant):
        terms = search.round_costs(variant.target, target_place, variant.draft, draft_place, costs_of)
        speeds += [sequential_round(q.alpha, gamma, terms).tokens_per_s for gamma in gammas]
    return max(speeds)


def _placements(search: Search, variant: Variant) -> Iterator[tuple[Placement, Placement | None]]:
    """A kind's placements with every number of threads; one with borders, and one whose place is given, as it is."""
    q, drafter = search.question, variant.draft_placement
    whole = variant.target_placement.whole and (drafter is None or drafter.whole)
    if not whole or q.target_place is not None or q.draft_place is not None:
        yield variant.target_placement, drafter
        return
    for group in search.groups():
        here = {p.family: p for p in group}
        target = here.get(variant.target_placement.families[0])
        other = None if drafter is None else here.get(drafter.families[0])
        if target is not None and (drafter is None or other is not None):
            spec = variant.draft
            placed = None if other is None or spec is None else search.costs(spec).whole(other)
            yield search.costs(variant.target).whole(target), placed
