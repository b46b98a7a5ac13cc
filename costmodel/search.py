"""The best way to run a pair of models on a board, exactly, and why every other leading way lost.

Searched: target alone, sequential speculation, overlapped speculation, n-gram drafting; draft lengths 0 to 16; every
weight format at hand; placements with at most two borders per model and every thread count of every cluster (for the
overlapped mode each model whole on one processor, on cores that the other does not use); only what fits the memory.

Exact because a sequential round is a sum: for a draft length the target counts with one step of gamma + 1 tokens and
the drafter with its own steps, so each model's frontier of (time, GPU memory) contains the best pair (placement.py).
tests/costmodel/test_search.py compares with brute force.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from costmodel.contention import Load, together_bytes_per_s
from costmodel.memory import PROCESS_BYTES, Memory, available_bytes, model_memory
from costmodel.placement import ModelCosts, Placement, disjoint, shared_cluster
from costmodel.roofline import Processor, Roofline, all_cores, dram_bytes
from costmodel.shape import DecoderShape
from costmodel.speculative import Acceptance, RoundCosts, all_accepted, overlapped_round, sequential_round
from costmodel.variants import (
    NGRAM,
    OVERLAPPED,
    SEQUENTIAL,
    TARGET_ONLY,
    Decision,
    Question,
    Variant,
    fastest,
    gb,
    rank,
    why_not,
)
from targets.errors import UserError


class Search:
    """Prices variants of one question; made once, asked by the planner, the report and the sweep."""

    def __init__(self, question: Question) -> None:
        """Check the question.

        Raises:
            UserError: it has no answer; see `Question.check`.
        """
        question.check()
        self.question = question
        self.roofline = Roofline(question.board, question.factors)
        self.free_bytes = available_bytes(question.board)
        self._costs: dict[int, ModelCosts] = {}
        self._loads: dict[tuple[int, str, int], Load] = {}

    def costs(self, shape: DecoderShape) -> ModelCosts:
        """Priced steps of a model, kept."""
        if id(shape) not in self._costs:
            self._costs[id(shape)] = ModelCosts(self.roofline, shape, self.question.context)
        return self._costs[id(shape)]

    def decide(self) -> Decision:
        """The best variant and the leading ones.

        Raises:
            UserError: nothing fits the memory.
        """
        found = list(self._target_only())
        fitting = [v for v in found if v.memory.total_bytes <= self.free_bytes]
        if not fitting:
            least = min(found, key=lambda v: v.memory.total_bytes)
            raise UserError(
                f"{least.target.name} fits no memory of board {self.question.board.name}: it needs at least "
                f"{gb(least.memory.total_bytes)}, {gb(self.free_bytes)} are free"
            )
        single = [v for v in fitting if v.target_placement.whole and "+" not in v.target_placement.families[0]]
        baseline = fastest(single or fitting)
        found += self._speculative()
        found = [self._against(v, baseline) for v in found]
        fitting = sorted((v for v in found if v.memory.total_bytes <= self.free_bytes), key=rank)
        best = fitting[0]
        leading = [replace(best, reason=self._why_chosen(best, baseline))]
        leading += [replace(v, reason=why_not(v, best)) for v in fitting[1:]]
        not_fitting = [
            replace(v, reason=f"needs {gb(v.memory.total_bytes)}, {gb(self.free_bytes)} are free")
            for v in sorted((v for v in found if v.memory.total_bytes > self.free_bytes), key=rank)
        ]
        return Decision(leading[0], tuple(leading), tuple(not_fitting), baseline)

    # -- variants -------------------------------------------------------------------------------------------------

    def _target_only(self) -> Iterable[Variant]:
        """The target alone: whole on each kind of processor, on all clusters together, and the best with borders."""
        for target in self.question.targets:
            for placement in self._wholes(target, ((1.0, 1),)):
                yield self.price(TARGET_ONLY, target, placement)
            mixed = all_cores(self.question.board)
            if mixed is not None:
                yield self.price(TARGET_ONLY, target, self.costs(target).whole(mixed))
            yield from self._with_borders(target, 0)

    def _speculative(self) -> Iterable[Variant]:
        q = self.question
        gammas = range(1, q.most_gamma + 1)
        for target in q.targets:
            if q.ngram_alpha is not None:
                yield from _best_of_each(v for gamma in gammas for v in self._ngram(target, gamma))
            for draft in q.drafts:
                yield from _best_of_each(v for gamma in gammas for v in self._sequential(target, draft, gamma))
                if q.overlapped:
                    yield from _best_of_each(v for gamma in gammas for v in self._overlapped(target, draft, gamma))

    def _wholes(self, shape: DecoderShape, steps: Sequence[tuple[float, int]]) -> list[Placement]:
        """The model whole on each kind of processor, with the fastest thread count for a mix of steps."""
        costs = self.costs(shape)
        best: dict[str, tuple[float, Placement]] = {}
        for processor in costs.slices:
            placement = costs.whole(processor)
            time = sum(times * costs.step_s(placement, n) for times, n in steps)
            if processor.family not in best or time < best[processor.family][0]:
                best[processor.family] = (time, placement)
        return [placement for _, placement in best.values()]

    def _ngram(self, target: DecoderShape, gamma: int) -> Iterable[Variant]:
        for placement in self._wholes(target, ((1.0, gamma + 1),)):
            yield self.price(NGRAM, target, placement, gamma=gamma)
        yield from self._with_borders(target, gamma, mode=NGRAM)

    def _sequential(self, target: DecoderShape, draft: DecoderShape, gamma: int) -> Iterable[Variant]:
        """Both models whole, on every pair of kinds of processors; and the best pair of placements that fits."""
        drafters = self._wholes(draft, self._draft_steps(gamma))
        for placement in self._wholes(target, ((1.0, gamma + 1),)):
            for drafter in drafters:
                yield self.price(SEQUENTIAL, target, placement, draft, drafter, gamma)
        yield from self._with_borders(target, gamma, draft)

    def _draft_steps(self, gamma: int) -> tuple[tuple[float, int], ...]:
        """Steps of the drafter in a round: the first one takes in two tokens after full acceptance."""
        full = all_accepted(self.question.alpha, gamma)
        return ((gamma - full, 1), (full, 2))

    def _with_borders(
        self, target: DecoderShape, gamma: int, draft: DecoderShape | None = None, mode: str | None = None
    ) -> Iterable[Variant]:
        """The fastest pair of placements that fits the memory, where it is not both models whole."""
        placements = self.costs(target).frontier(((1.0, gamma + 1),))
        fixed = self._memory(target, placements[0][2], None, None).total_bytes - placements[0][1]
        if draft is None:
            fitting = [p for _, copied, p in placements if fixed + copied <= self.free_bytes]
            if fitting and not fitting[0].whole:
                yield self.price(mode or TARGET_ONLY, target, fitting[0], gamma=gamma)
            return
        drafters = self.costs(draft).frontier(self._draft_steps(gamma))
        fixed += model_memory(draft, self.question.context).total_bytes
        best: tuple[float, Placement, Placement] | None = None
        for time, copied, placement in placements:
            left = self.free_bytes - fixed - copied
            mate = next(((t, p) for t, more, p in drafters if more <= left), None)
            if mate is not None and (best is None or time + mate[0] < best[0]):
                best = (time + mate[0], placement, mate[1])
        if best is not None and not (best[1].whole and best[2].whole):
            yield self.price(SEQUENTIAL, target, best[1], draft, best[2], gamma)

    def _overlapped(self, target: DecoderShape, draft: DecoderShape, gamma: int) -> Iterable[Variant]:
        slices = self.costs(target).slices
        for here in slices:
            for there in slices:
                if disjoint(here, there):
                    placement, drafter = self.costs(target).whole(here), self.costs(draft).whole(there)
                    yield self.price(OVERLAPPED, target, placement, draft, drafter, gamma)

    # -- prices ---------------------------------------------------------------------------------------------------

    def price(
        self,
        mode: str,
        target: DecoderShape,
        placement: Placement,
        draft: DecoderShape | None = None,
        drafter: Placement | None = None,
        gamma: int = 0,
        alpha: Acceptance | None = None,
    ) -> Variant:
        """One variant with its expected round and its memory; `alpha` None takes the question's."""
        q = self.question
        if alpha is None:
            alpha = q.ngram_alpha if mode == NGRAM and q.ngram_alpha is not None else q.alpha
        if mode == OVERLAPPED and draft is not None and drafter is not None:
            here, there = placement.segments[0].processor, drafter.segments[0].processor
            other = self.roofline.round_overhead_s() + self._sampling_s(target, gamma + 1)
            limit = together_bytes_per_s(q.board, q.factors, shared_cluster(here, there))
            loads = self._load(draft, there, 1), self._load(target, here, gamma + 1)
            expected = overlapped_round(alpha, gamma, *loads, other, limit)
        else:
            expected = sequential_round(alpha, gamma, self.round_costs(target, placement, draft, drafter))
        return Variant(
            mode, target, placement, draft, drafter, expected, self._memory(target, placement, draft, drafter)
        )

    def round_costs(
        self, target: DecoderShape, placement: Placement, draft: DecoderShape | None, drafter: Placement | None
    ) -> RoundCosts:
        """The terms of a sequential round under placements of both models."""
        costs = self.costs(target)
        one = two = 0.0
        if draft is not None and drafter is not None:
            one, two = (self.costs(draft).step_s(drafter, n) for n in (1, 2))
        return RoundCosts(
            draft_s=one,
            draft_two_s=two,
            verify_s=lambda n: costs.step_s(placement, n),
            dispatch_s=self.roofline.round_overhead_s(),
            sampling_s=lambda rows: self._sampling_s(target, rows) * (2 if draft is not None and rows > 1 else 1),
        )

    def _sampling_s(self, target: DecoderShape, rows: int) -> float:
        """Turning logits into probabilities and drawing, on one thread of the first cluster; 0 when greedy."""
        if not self.question.sampled:
            return 0.0
        hz = self.question.board.clusters[0].frequency_ghz * 1e9
        return rows * target.vocab * self.question.factors.sampling_cycles / hz

    def _load(self, shape: DecoderShape, processor: Processor, n: int) -> Load:
        key = (id(shape), processor.name, n)
        if key not in self._loads:
            costs = self.costs(shape)
            estimate = costs.step(costs.whole(processor), n)
            self._loads[key] = Load(estimate.total_s, estimate.memory_s, dram_bytes(costs.counted(n)))
        return self._loads[key]

    def _memory(
        self, target: DecoderShape, placement: Placement, draft: DecoderShape | None, drafter: Placement | None
    ) -> Memory:
        context = self.question.context
        memory = Memory(process_bytes=PROCESS_BYTES) + model_memory(target, context, placement.gpu_bytes(target))
        if draft is not None and drafter is not None:
            memory = memory + model_memory(draft, context, drafter.gpu_bytes(draft))
        return memory

    # -- comparison -----------------------------------------------------------------------------------------------

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
    """The fastest of each (processor of the target, of the drafter); placements with borders are one kind."""
    best: dict[tuple[str, ...], Variant] = {}
    for variant in variants:
        drafter = variant.draft_placement
        whole = variant.target_placement.whole and (drafter is None or drafter.whole)
        key = (
            (variant.target_placement.families[0], "" if drafter is None else drafter.families[0])
            if whole
            else ("with borders",)
        )
        if key not in best or rank(variant) < rank(best[key]):
            best[key] = variant
    return list(best.values())
