"""What a plan predicts: the steps that `run.py --stats` compares with, and what live draft lengths start from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from costmodel.prompt_chunks import next_chunk
from costmodel.schema.batch import BatchPrediction
from costmodel.schema.model import Size
from costmodel.schema.record import Entries, Record, SchemaError, Within

Share = Annotated[float, Within(0, 1)]
Positive = Annotated[float, Within(above=0)]
NotNegative = Annotated[float, Within(0)]


@dataclass(frozen=True)
class LivePrediction(Record):
    """What live decisions of the draft length start from (hetero_sd/runtime/decode/live_gamma.py).

    Attributes:
        alpha: acceptance of a drafted token.
        draft_s: a step of the drafter.
        verify_s: width -> a step of the target, for each compiled width, ascending, with what a turn adds to all but 1.
        round_s: the loop around a round.
        chunk_s: what the drafter needs to read `chunk` tokens of text.
        chunk: tokens it reads at once.
        alpha_tokens: judged tokens of a run that the acceptance counts for.
    """

    alpha: Share
    draft_s: Positive
    verify_s: Annotated[dict[Size, Positive], Entries(1, 64)]
    round_s: Positive
    chunk_s: Positive
    chunk: Annotated[int, Within(1, 1 << 20)]
    alpha_tokens: Positive = 4.0

    def __post_init__(self) -> None:
        """Sort by width; a plain step must be among them."""
        if 1 not in self.verify_s:
            raise SchemaError("verify_s has no step of one token")
        object.__setattr__(self, "verify_s", dict(sorted(self.verify_s.items())))


@dataclass(frozen=True)
class PlanPrediction(Record):
    """What `run.py --stats` prints beside the measured times: the plan's steps at half of its context.

    Attributes:
        acceptance_rate: the share of judged tokens that is accepted; None where nothing is drafted.
        acceptance_source: where the acceptance comes from; None without a drafter.
        tokens_per_round: expected; None where nothing is drafted.
        tokens_per_s: speed.
        tokens_per_s_interval: its range.
        draft_step_s: a step of the drafter; None without one.
        verify_step_s: new tokens -> a step of the target.
        prompt_chunk_s: a chunk of a prompt through the target, without logits.
        prompt_result_s: what the last chunk takes longer, for the logits of one row.
        long_chunks_s: width of a wider chunk -> its seconds at the start of a prompt and after `context` tokens.
        prompt_start_s: the first chunk of a prompt, before which there is nothing; None takes prompt_chunk_s.
        sampling_s, dispatch_s: the rest of a round.
        turn_s: what dispatch takes longer in a round that drafts.
        transfer_s: of the steps of a round of the plan's draft length: values copied between processors.
        slot_calls: calls of a target with slots; None where it has one.
        draft_slot_calls: the same of the drafter beside it.
        start_s: what the first steps of a text take longer than later ones, all together: after a prompt was read.
        turn_start_s: the same of rounds that draft.
        confidence_s: telling the confidence of a drafted token, where drafts may end by it.
        context: tokens in the caches.
        live: what live decisions start from; None without a drafter.
    """

    acceptance_rate: Share | None
    acceptance_source: str | None
    tokens_per_round: NotNegative | None
    tokens_per_s: NotNegative
    tokens_per_s_interval: tuple[NotNegative, NotNegative]
    draft_step_s: NotNegative | None
    verify_step_s: dict[Size, NotNegative]
    prompt_chunk_s: NotNegative
    sampling_s: NotNegative
    dispatch_s: NotNegative
    context: Size
    live: LivePrediction | None = None
    prompt_start_s: NotNegative | None = None
    turn_s: NotNegative = 0.0
    transfer_s: NotNegative = 0.0
    slot_calls: BatchPrediction | None = None
    draft_slot_calls: BatchPrediction | None = None
    prompt_result_s: NotNegative = 0.0
    start_s: NotNegative = 0.0
    turn_start_s: NotNegative = 0.0
    confidence_s: NotNegative = 0.0
    long_chunks_s: dict[Size, tuple[NotNegative, NotNegative]] = field(default_factory=dict)

    def first_token_s(self, prompt_tokens: int, chunk: int) -> float:
        """Seconds from a prompt to its first token: chunks, then a step, or a chunk, for the rest.

        `chunk` is the narrow one's tokens. The time of a chunk grows evenly with the tokens before it.
        """
        widths, past, seconds = sorted({chunk, *self.long_chunks_s}), 0, 0.0
        while past < prompt_tokens:
            left = prompt_tokens - past
            if left in self.verify_step_s and left < chunk:
                return seconds + self.verify_step_s[left]
            width = next_chunk(left, widths)
            seconds, past = seconds + self._chunk_s(width, past), past + width
        return seconds + self.prompt_result_s

    def _chunk_s(self, width: int, past: int) -> float:
        start = self.prompt_chunk_s if self.prompt_start_s is None else self.prompt_start_s
        first, later = self.long_chunks_s.get(width, (start, self.prompt_chunk_s))
        return first + (later - first) * past / max(1, self.context)
