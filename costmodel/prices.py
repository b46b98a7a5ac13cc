"""What a variant of a question costs: its round, its memory, and the steps that they are made of."""

from __future__ import annotations

from collections.abc import Callable

from costmodel.contention import Load, together_bytes_per_s
from costmodel.decoder import DecoderSpec
from costmodel.early_verification import early_round
from costmodel.engine import roofline_of
from costmodel.memory import PROCESS_BYTES, Memory, available_bytes, model_memory
from costmodel.model_costs import ModelCosts
from costmodel.placement import Placement
from costmodel.processor import GpuSlice, Processor
from costmodel.processor_pairs import shared_cluster
from costmodel.question import NGRAM, Question, Variant
from costmodel.roofline import dram_bytes
from costmodel.schema.plan import OVERLAPPED, SEQUENTIAL
from costmodel.speculative import (
    Acceptance,
    Round,
    RoundCosts,
    ngram_round,
    overlapped_round,
    sequential_round,
)
from costmodel.turns import turns_of
from costmodel.work import Op


class Prices:
    """Prices variants of one question, and keeps what it has counted."""

    def __init__(self, question: Question) -> None:
        """Check the question.

        Raises:
            UserError: it has no answer; see `Question.check`.
        """
        question.check()
        self.question = question
        self.roofline = roofline_of(question.engine, question.kernels, question.board, question.factors)
        self.free_bytes = available_bytes(question.board)
        self._costs: dict[int, ModelCosts] = {}
        self._counted: dict[int, dict[int, list[tuple[Op, ...]]]] = {}
        self._loads: dict[tuple[int, str, int], Load] = {}

    def costs(self, spec: DecoderSpec) -> ModelCosts:
        """Priced steps of a model, kept."""
        if id(spec) not in self._costs:
            counted = self._counted.setdefault(id(spec), {})
            self._costs[id(spec)] = ModelCosts(self.roofline, spec, self.question.context, counted)
        return self._costs[id(spec)]

    def price(
        self,
        mode: str,
        target: DecoderSpec,
        placement: Placement,
        draft: DecoderSpec | None = None,
        drafter: Placement | None = None,
        gamma: int = 0,
        alpha: Acceptance | None = None,
    ) -> Variant:
        """One variant with its expected round and its memory; `alpha` None takes the question's.

        An overlapped round waits for as many drafts as is fastest.
        """
        q = self.question
        least: int | None = None
        if alpha is None:
            alpha = q.ngram_alpha if mode == NGRAM and q.ngram_alpha is not None else q.alpha
        if mode == OVERLAPPED and draft is not None and drafter is not None:
            least, expected = self._overlapped_round(target, placement, draft, drafter, gamma, alpha)
        else:
            costs = self.round_costs(target, placement, draft, drafter)
            expected = sequential_round(alpha, gamma, costs)
            if mode == NGRAM:
                expected = ngram_round(q.ngram_match, expected, sequential_round(alpha, 0, costs))
        return Variant(
            *(mode, target, placement, draft, drafter, expected),
            memory=self._memory(mode, target, placement, draft, drafter),
            least=least,
        )

    def _overlapped_round(
        self,
        target: DecoderSpec,
        placement: Placement,
        draft: DecoderSpec,
        drafter: Placement,
        gamma: int,
        alpha: Acceptance,
    ) -> tuple[int, Round]:
        """How many drafts the target waits for, and the round: all of them, where it samples, or what is fastest."""
        here, there = placement.segments[0].processor, drafter.segments[0].processor
        step = self.load(draft, there, 1)
        return self.overlapped_round(target, here, there, step, gamma, alpha, lambda n: self.load(target, here, n))

    def overlapped_round(
        self,
        target: DecoderSpec,
        here: Processor,
        there: Processor,
        step: Load,
        gamma: int,
        alpha: Acceptance,
        verify: Callable[[int], Load],
        least: int | None = None,
    ) -> tuple[int, Round]:
        """How many drafts the target waits for and the round, of a target `here` and a drafter `there`.

        Args:
            target: verifies gamma + 1 tokens at a time.
            here: where the target runs.
            there: where the drafter runs.
            step: of the drafter alone.
            gamma: drafts that are verified at a time, at most.
            alpha: acceptance.
            verify: n -> the target's step of n tokens alone.
            least: drafts it waits for, 0 or gamma; None takes the faster one.
        """
        other = self.roofline.round_overhead_s() + turns_of(self.roofline).loop_s + self._sampling_s(target, gamma + 1)
        limit, hand_over = self.together_bytes_per_s(here, there), self.roofline.hand_over_s()
        rounds = {}
        if least != 0:
            rounds[gamma] = overlapped_round(alpha, gamma, step, verify(gamma + 1), other, limit, hand_over)
        if least == 0 or (least is None and not self.question.sampled):
            rounds[0] = early_round(alpha, gamma, 0, step, verify, other, limit, hand_over)
        best = max(rounds, key=lambda least: (rounds[least].tokens_per_s, least))
        return best, rounds[best]

    def together_bytes_per_s(self, here: Processor, there: Processor) -> float:
        """What two processors read of DRAM together."""
        return together_bytes_per_s(self.question.board, self.question.factors, shared_cluster(here, there))

    def round_costs(
        self,
        target: DecoderSpec,
        placement: Placement,
        draft: DecoderSpec | None,
        drafter: Placement | None,
        costs_of: Callable[[DecoderSpec, Placement], ModelCosts] | None = None,
    ) -> RoundCosts:
        """The terms of a sequential round under placements of both models; `costs_of` None takes this question's."""
        costs_of = costs_of or (lambda spec, where: self.costs(spec))
        costs, turns = costs_of(target, placement), turns_of(self.roofline)
        one = two = 0.0
        in_turn = draft is not None and drafter is not None
        if draft is not None and drafter is not None:
            drafts = costs_of(draft, drafter)
            one, two = (turns.draft_s + drafts.step_s(drafter, n) for n in (1, draft.after_acceptance))
        return RoundCosts(
            draft_s=one,
            draft_two_s=two,
            verify_s=lambda n: costs.step_s(placement, n) + (turns.verify_s if in_turn and n > 1 else 0.0),
            dispatch_s=self.roofline.round_overhead_s(),
            turn_s=turns.loop_s if in_turn else 0.0,
            sampling_s=lambda rows: self._sampling_s(target, rows) * (2 if draft is not None and rows > 1 else 1),
        )

    def _sampling_s(self, target: DecoderSpec, rows: int) -> float:
        """Turning logits into probabilities and drawing, on one thread of the first cluster; 0 when greedy."""
        if not self.question.sampled:
            return 0.0
        hz = self.question.board.clusters[0].frequency_ghz * 1e9
        return rows * target.vocab * self.question.factors.sampling_cycles / hz

    def load(self, spec: DecoderSpec, processor: Processor, n: int) -> Load:
        """A step of n tokens alone on a processor."""
        host = processor.host.name if isinstance(processor, GpuSlice) else ""
        key = (id(spec), processor.name + host, n)
        if key not in self._loads:
            costs = self.costs(spec)
            estimate = costs.step(costs.whole(processor), n)
            self._loads[key] = Load(estimate.total_s, estimate.memory_s, dram_bytes(costs.counted(n)))
        return self._loads[key]

    def _memory(
        self, mode: str, target: DecoderSpec, placement: Placement, draft: DecoderSpec | None, drafter: Placement | None
    ) -> Memory:
        slots = self.question.slots
        memory = Memory(process_bytes=PROCESS_BYTES) + self.model_memory(target, placement, slots=slots)
        return memory if draft is None or drafter is None else memory + self.model_memory(draft, drafter, mode, slots)

    def model_memory(self, spec: DecoderSpec, placement: Placement, mode: str = SEQUENTIAL, slots: int = 1) -> Memory:
        """What one model keeps in memory, its KV caches with so many slots.

        The weights of first layers count with the whole decoder. Where the two take turns the KV cache is the whole
        decoder's; their own takes memory on a GPU, which gives a buffer its memory when it is made.
        """
        rows = self.question.cache_rows or self.question.context
        if spec.whole is None:
            return model_memory(spec, rows, placement.weight_bytes(spec), slots=slots)
        own = mode == OVERLAPPED or any(isinstance(s.processor, GpuSlice) for s in placement.segments)
        return model_memory(spec, rows if own else 0, (0, 0), slots=slots)
