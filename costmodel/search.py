"""The best way to run a pair of models on a board, exactly, and why every other leading way lost.

Of the variants that variants.py lists, only what fits the memory.
Exact because a sequential round is a sum: for a draft length the target counts with one step of gamma + 1 tokens and
the drafter with its own steps, so each model's frontier of (time, GPU memory) contains the best pair (placement.py).
tests/costmodel/test_search.py compares with brute force.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from costmodel.factors import Factors
from costmodel.question import Decision, Variant, fastest, gb, rank, why_not
from costmodel.schema.plan import TARGET_ONLY
from costmodel.speculative import Acceptance
from costmodel.variants import Variants
from targets.errors import UserError


class Search(Variants):
    """Looks for the best variant of one question; made once, asked by the planner, the report and the sweep."""

    def with_factors(self, factors: Factors) -> Search:
        """The same question with other factors; operators and cycles, which they do not change, are counted once."""
        moved = Search(replace(self.question, factors=factors))
        moved.roofline, moved._counted = replace(self.roofline, factors=factors), self._counted
        return moved

    def with_alpha(self, alpha: Acceptance) -> Search:
        """The same question with another acceptance, which changes no step."""
        moved = Search(replace(self.question, alpha=alpha))
        moved.roofline, moved._counted = self.roofline, self._counted
        moved._costs, moved._loads = self._costs, self._loads
        return moved

    def decide(self) -> Decision:
        """The best variant and the leading ones.

        Raises:
            UserError: nothing fits the memory.
        """
        q, groups = self.question, self.groups()
        alone = [v for slices in groups for v in self.target_only(slices, None)]
        fitting = self._fitting(alone, q.targets[0].name)
        single = [v for v in fitting if v.target_placement.whole and "+" not in v.target_placement.families[0]]
        baseline = fastest(single or fitting)
        found: list[Variant] = []
        for slices in groups:
            if not (q.gamma and q.drafts):
                found += self.target_only(slices, q.target_place)
            found += self.speculative(slices)
        speeds = (v.tokens_per_s for v in found if v.memory.total_bytes <= self.free_bytes)
        found += self.overlapped(max(speeds, default=0.0))
        found = [self._against(v, baseline) for v in _best_of_each(found)]
        names = " and ".join(specs[0].name for specs in (q.targets, q.drafts if q.gamma else ()) if specs)
        fitting = sorted(self._fitting(found, names), key=rank)
        best = fitting[0]
        leading = [replace(best, reason=self._why_chosen(best, baseline))]
        leading += [replace(v, reason=why_not(v, best)) for v in fitting[1:]]
        not_fitting = [
            replace(v, reason=f"needs {gb(v.memory.total_bytes)}, {gb(self.free_bytes)} are free")
            for v in sorted((v for v in found if v.memory.total_bytes > self.free_bytes), key=rank)
        ]
        return Decision(leading[0], tuple(leading), tuple(not_fitting), baseline)

    def _fitting(self, variants: Sequence[Variant], names: str) -> list[Variant]:
        fitting = [v for v in variants if v.memory.total_bytes <= self.free_bytes]
        if not fitting:
            least = min(v.memory.total_bytes for v in variants)
            raise UserError(
                f"{names} fits no memory of board {self.question.board.name}: it needs at least "
                f"{gb(least)}, {gb(self.free_bytes)} are free"
            )
        return fitting

    def _against(self, variant: Variant, baseline: Variant) -> Variant:
        same = self.price(TARGET_ONLY, variant.target, variant.target_placement)
        return replace(
            variant,
            against_same=variant.tokens_per_s / same.tokens_per_s,
            against_best=variant.tokens_per_s / baseline.tokens_per_s,
        )

    def _why_chosen(self, best: Variant, baseline: Variant) -> str:
        if best.mode == TARGET_ONLY and best.target_placement == baseline.target_placement:
            return "chosen: the fastest on a single processor, and nothing gains on it"
        return (
            f"chosen: {best.against_best:.2f} x the best single processor alone ({baseline.tokens_per_s:.2f} tokens/s)"
        )


def _best_of_each(variants: Iterable[Variant]) -> list[Variant]:
    """The fastest of each mode, formats, processor of the target and of the drafter; all with borders are one kind."""
    best: dict[tuple[object, ...], Variant] = {}
    for variant in variants:
        drafter = variant.draft_placement
        whole = variant.target_placement.whole and (drafter is None or drafter.whole)
        where = (variant.target_placement.families, () if drafter is None else drafter.families) if whole else ()
        key = (variant.mode, id(variant.target), id(variant.draft), where)
        if key not in best or rank(variant) < rank(best[key]):
            best[key] = variant
    return list(best.values())
