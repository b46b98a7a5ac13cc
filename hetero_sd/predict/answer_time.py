"""Seconds, and joules, of one whole answer: reading the prompt, the first token, the rest of the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from costmodel.decoder import DecoderSpec
from costmodel.model_costs import ModelCosts
from costmodel.placement import Placement
from costmodel.question import Variant
from costmodel.schema.plan import OVERLAPPED
from costmodel.search import Search
from costmodel.turns import turns_of

CHUNK = 32  # tokens that a bundle reads a prompt in (hetero_sd/compile/context.py)
_SAMPLES = 9  # chunks that are priced; the time of a chunk grows evenly with the tokens before it


@dataclass(frozen=True)
class AnswerTime:
    """What a user waits for.

    Attributes:
        prompt_tokens, new_tokens: tokens read, and tokens of the answer.
        prefill_s: the target reads the prompt; its last row of logits gives the first token.
        draft_prefill_s: the drafter reads it, after the first token is out, unless it shares the target's cache.
        rest_s: the tokens after the first one.
        watts: of the board while it generates, or None.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    draft_prefill_s: float
    rest_s: float
    watts: float | None = None

    @property
    def first_token_s(self) -> float:
        """From the prompt to its first token."""
        return self.prefill_s

    @property
    def answer_s(self) -> float:
        """From the prompt to the last token."""
        return self.prefill_s + self.draft_prefill_s + self.rest_s

    @property
    def energy_j(self) -> float | None:
        """Of the answer, where the board's watts are known."""
        return None if self.watts is None else self.watts * self.answer_s

    def to_json(self) -> Mapping[str, float | int | None]:
        """Plain JSON."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "prefill_s": self.prefill_s,
            "first_token_s": self.first_token_s,
            "draft_prefill_s": self.draft_prefill_s,
            "answer_s": self.answer_s,
            "energy_j": self.energy_j,
        }


def answer_time(search: Search, variant: Variant, prompt_tokens: int, new_tokens: int) -> AnswerTime:
    """The times of an answer of `new_tokens` tokens; steps cost what they cost at the question's context."""
    drafter, place = variant.draft, variant.draft_placement
    power = search.question.board.power
    reads = drafter is not None and (drafter.whole is None or variant.mode == OVERLAPPED)
    start_s = search.roofline.text_start_s() if drafter is None else turns_of(search.roofline).start_s
    return AnswerTime(
        prompt_tokens,
        new_tokens,
        prompt_s(search, variant.target, variant.target_placement, prompt_tokens),
        prompt_s(search, drafter, place, prompt_tokens) if reads and drafter and place else 0.0,
        start_s + (new_tokens - 1) / variant.tokens_per_s,
        None if power is None else power.decode_w,
    )


def prompt_s(search: Search, spec: DecoderSpec, placement: Placement, tokens: int, chunk: int = CHUNK) -> float:
    """Seconds to read a prompt in chunks of `chunk` tokens, the rest in a chunk of its own; the last one has logits.

    A few chunks are priced at their place in the prompt; those between cost what their neighbours say on average.
    """
    whole = (tokens - 1) // chunk
    count = min(whole, _SAMPLES)
    at = [round(i * (whole - 1) / max(1, count - 1)) for i in range(count)]
    times = [ModelCosts(search.roofline, spec, chunk * i).prompt_chunk_s(placement, chunk, fills=True) for i in at]
    mean = sum(times) / max(1, count) if count in (0, whole) else _trapezoids(at, times) / (at[-1] - at[0])
    last = ModelCosts(search.roofline, spec, chunk * whole).prompt_chunk_s(placement, tokens - chunk * whole)
    return whole * mean + last


def _trapezoids(xs: list[int], ys: list[float]) -> float:
    return sum((xs[i + 1] - xs[i]) * (ys[i + 1] + ys[i]) / 2 for i in range(len(xs) - 1))
