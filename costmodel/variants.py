"""The ways to run a pair that may be the best: every mode, draft length, format and placement worth pricing.

Target alone, sequential speculation, overlapped speculation (waiting for all drafts or none), n-gram drafting; draft
lengths 0 to 16; every weight format at hand; placements with at most two borders per model and every thread count of
every cluster (for the overlapped mode each model whole on one processor, on cores that the other does not use).
With `one_process` only what the runtime can run: for each cluster and thread count, which both models share, everything
that it can do together with the GPU; and all overlapped pairs, for there each model has threads of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product

from costmodel.decoder import DecoderSpec
from costmodel.early_exit import placed_with
from costmodel.frontier import frontier
from costmodel.place import Place
from costmodel.placement import Placement
from costmodel.prices import Prices
from costmodel.processor import CpuSlice, GpuSlice, Processor, all_cores, processors
from costmodel.processor_pairs import disjoint, shared_cluster, with_enqueuing_core
from costmodel.question import NGRAM, Variant
from costmodel.schema.plan import OVERLAPPED, SEQUENTIAL, TARGET_ONLY
from costmodel.speculative import all_accepted, expected_tokens


class Variants(Prices):
    """Lists the variants of one question, priced."""

    def groups(self) -> list[list[Processor]]:
        """Processors that may be used together: all, or the GPU and one slice of one cluster, which enqueues for it."""
        board = self.question.board
        everything = processors(board)
        if not self.question.one_process:
            return [everything]
        given = self.question.cores
        slices = [p for p in everything if isinstance(p, CpuSlice)] if given is None else [given]
        return [[s, *([GpuSlice(board.gpu, s.parts[0][0])] if board.gpu else [])] for s in slices]

    def target_only(self, slices: Sequence[Processor], place: Place | None) -> Iterable[Variant]:
        """The target alone: whole on each kind of processor, on all clusters together, and the best with borders."""
        q = self.question
        for target in q.targets:
            if place is None:
                for placement in self._wholes(target, ((1.0, 1),), slices):
                    yield self.price(TARGET_ONLY, target, placement)
                mixed = None if q.one_process else all_cores(q.board)
                if mixed is not None:
                    yield self.price(TARGET_ONLY, target, self.costs(target).whole(mixed))
            yield from self._with_borders(target, 0, slices, place)

    def speculative(self, slices: Sequence[Processor]) -> Iterable[Variant]:
        """Rounds in turn of every drafter, and of drafts from the text, by draft length."""
        q = self.question
        for target, gamma in product(q.targets, q.gammas):
            if q.ngram_alpha is not None and not q.one_process:
                yield from self._ngram(target, gamma, slices)
            for draft in q.drafts_of(target):
                yield from self._sequential(target, draft, gamma, slices)

    def _wholes(
        self, spec: DecoderSpec, steps: Sequence[tuple[float, int]], slices: Sequence[Processor]
    ) -> list[Placement]:
        """The model whole on each kind of processor, with the fastest thread count for a mix of steps."""
        costs = self.costs(spec)
        best: dict[str, tuple[float, Placement]] = {}
        for processor in slices:
            placement = costs.whole(processor)
            time = sum(times * costs.step_s(placement, n) for times, n in steps)
            if processor.family not in best or time < best[processor.family][0]:
                best[processor.family] = (time, placement)
        return [placement for _, placement in best.values()]

    def _ngram(self, target: DecoderSpec, gamma: int, slices: Sequence[Processor]) -> Iterable[Variant]:
        place = self.question.target_place
        for placement in self._wholes(target, self._target_steps(gamma, NGRAM), slices) if place is None else ():
            yield self.price(NGRAM, target, placement, gamma=gamma)
        yield from self._with_borders(target, gamma, slices, place, mode=NGRAM)

    def _sequential(
        self, target: DecoderSpec, draft: DecoderSpec, gamma: int, slices: Sequence[Processor]
    ) -> Iterable[Variant]:
        """Both models whole, on every pair of kinds of processors; and the best pair of placements that fits.

        First layers that read the target's weights and caches run where these are.
        """
        q = self.question
        if draft.whole is not None:
            for placement in self._wholes(target, ((1.0, gamma + 1),), slices) if q.target_place is None else ():
                yield self._exiting(target, placement, draft, gamma)
        elif q.target_place is None and q.draft_place is None:
            drafters = self._wholes(draft, self._draft_steps(draft, gamma), slices)
            for placement, drafter in product(self._wholes(target, ((1.0, gamma + 1),), slices), drafters):
                yield self.price(SEQUENTIAL, target, placement, draft, drafter, gamma)
        yield from self._with_borders(target, gamma, slices, q.target_place, draft)

    def _exiting(self, target: DecoderSpec, placement: Placement, draft: DecoderSpec, gamma: int) -> Variant:
        return self.price(SEQUENTIAL, target, placement, draft, placed_with(placement, target, draft), gamma)

    def _target_steps(self, gamma: int, mode: str) -> tuple[tuple[float, int], ...]:
        """Steps of the target in a round; with n-gram drafting a round without a match is a plain step."""
        match = self.question.ngram_match if mode == NGRAM else 1.0
        return ((match, gamma + 1), *(((1.0 - match, 1),) if match < 1 else ()))

    def _draft_steps(self, draft: DecoderSpec, gamma: int) -> tuple[tuple[float, int], ...]:
        """Steps of the drafter in a round: the first one may take in two tokens after full acceptance."""
        full = all_accepted(self.question.alpha, gamma)
        return ((gamma - full, 1), (full, draft.after_acceptance))

    def _with_borders(
        self,
        target: DecoderSpec,
        gamma: int,
        slices: Sequence[Processor],
        place: Place | None,
        draft: DecoderSpec | None = None,
        mode: str = TARGET_ONLY,
    ) -> Iterable[Variant]:
        """The fastest pair of placements that fits the memory (else the smallest), unless it is both models whole.

        Where the places are given, what they say, whole or not.
        """
        exits = None
        if draft is not None and draft.whole is not None:
            exits = self.costs(draft), self._draft_steps(draft, gamma)
        placements = frontier(self.costs(target), self._target_steps(gamma, mode), slices, place, exits)
        fixed = self._memory(mode, target, placements[0][2], None, None).total_bytes - placements[0][1]
        if draft is None:
            fitting = [p for _, more, p in placements if fixed + more <= self.free_bytes] or [placements[-1][2]]
            if place is not None or not fitting[0].whole:
                yield self.price(mode, target, fitting[0], gamma=gamma)
            return
        if exits is not None:
            fitting = [
                p
                for _, more, p in placements
                if fixed + more + self.model_memory(draft, placed_with(p, target, draft)).total_bytes <= self.free_bytes
            ]
            chosen = [*fitting, placements[-1][2]][0]
            if place is not None or not chosen.whole:
                yield self._exiting(target, chosen, draft, gamma)
            return
        draft_place = self.question.draft_place
        drafters = frontier(self.costs(draft), self._draft_steps(draft, gamma), slices, draft_place)
        fixed += self.model_memory(draft, drafters[0][2]).total_bytes - drafters[0][1]
        left = self.free_bytes - fixed
        pairs = [(a, b) for a in placements for b in drafters if a[1] + b[1] <= left]
        first, second = min(pairs, key=lambda p: p[0][0] + p[1][0], default=(placements[-1], drafters[-1]))
        if place is not None or draft_place is not None or not (first[2].whole and second[2].whole):
            yield self.price(SEQUENTIAL, target, first[2], draft, second[2], gamma)

    def overlapped_models(self) -> Iterable[tuple[DecoderSpec, DecoderSpec]]:
        """Target and drafter of overlapped rounds; none where cores are given."""
        q = self.question
        if q.overlapped and q.cores is None:
            yield from ((target, draft) for target in q.targets for draft in q.drafts_of(target))

    def overlapped_pairs(self, target: DecoderSpec, draft: DecoderSpec) -> Iterable[tuple[Placement, Placement]]:
        """Each model whole on a processor of its own; the places as they are given.

        Not two groups of cores of one cluster: there both groups for each model in turn were faster wherever it was
        measured (1.59 to 1.70x of the target alone for gamma 1 and 2 where overlapped rounds had 1.19 to 1.32x).
        """
        q, slices = self.question, self.costs(target).slices
        for here, there in sorted(product(slices, slices), key=lambda pair: -pair[0].threads):
            apart = disjoint(here, there) and shared_cluster(here, there) is None
            apart = apart and (draft.whole is None or all(isinstance(p, CpuSlice) for p in (here, there)))
            pair = with_enqueuing_core(q.board, here, there) if apart else None
            if pair is None:
                continue
            placement, drafter = self.costs(target).whole(pair[0]), self.costs(draft).whole(pair[1])
            given = ((q.target_place, placement.place(target)), (q.draft_place, drafter.place(draft)))
            if all(place is None or place == own for place, own in given):
                yield placement, drafter

    def overlapped(self, tokens_per_s: float) -> Iterable[Variant]:
        """Those that may be faster than what was found, and than others on the same kinds of processors."""
        for target, draft in self.overlapped_models():
            best = defaultdict[tuple[str, str], float](lambda: tokens_per_s)
            for placement, drafter in self.overlapped_pairs(target, draft):
                here, there = placement.segments[0].processor, drafter.segments[0].processor
                kind, most = (here.family, there.family), 0.0
                for gamma in self.question.gammas:
                    most = max(most, self._at_most(target, here, draft, there, gamma))
                    if most > best[kind]:
                        found = self.price(OVERLAPPED, target, placement, draft, drafter, gamma)
                        best[kind] = max(best[kind], found.tokens_per_s)
                        yield found

    def _at_most(self, target: DecoderSpec, here: Processor, draft: DecoderSpec, there: Processor, gamma: int) -> float:
        """Tokens a second of rounds that verify gamma drafts, if the target never waited, or the drafter never did."""
        alpha = self.question.alpha
        best = alpha if isinstance(alpha, float | int) else max(alpha)
        never_waits = expected_tokens(best, gamma) / self.load(target, here, gamma + 1).total_s
        return min(never_waits, 1 / self.load(target, here, 1).total_s + best / self.load(draft, there, 1).total_s)
