"""Seconds, and joules, of one whole answer: reading the prompt, the first token, the rest of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from costmodel.decoder import DecoderSpec
from costmodel.model_costs import ModelCosts
from costmodel.phase_threads import prompt_placement
from costmodel.placement import Placement
from costmodel.prompt_chunks import CHUNK, LONG_CHUNKS, next_chunk
from costmodel.question import Variant
from costmodel.schema.plan import OVERLAPPED
from costmodel.search import Search
from costmodel.turns import turns_of

_WORTH, _NOTICED_S = 0.03, 0.02  # a wider chunk saves this share of a prompt's time, and as many seconds
_ALIKE = 0.02
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


def answer_time(
    search: Search, variant: Variant, prompt_tokens: int, new_tokens: int, threads_given: bool = False
) -> AnswerTime:
    """The times of an answer of `new_tokens` tokens; steps cost what they cost at the question's context.

    With `threads_given` prompts are read with as many threads as tokens are decoded with.
    """
    drafter, place = variant.draft, variant.draft_placement
    power = search.question.board.power
    reads = drafter is not None and (drafter.whole is None or variant.mode == OVERLAPPED)
    target_reads = reading_place(search, variant.target, variant.target_placement, threads_given)
    draft_reads = None if drafter is None or place is None else reading_place(search, drafter, place, threads_given)
    start_s = search.roofline.text_start_s() if drafter is None else turns_of(search.roofline).start_s
    widths = chunk_widths(search, variant.target, target_reads)
    return AnswerTime(
        prompt_tokens,
        new_tokens,
        prompt_s(search, variant.target, target_reads, prompt_tokens, widths),
        prompt_s(search, drafter, draft_reads, prompt_tokens, widths) if reads and drafter and draft_reads else 0.0,
        start_s + (new_tokens - 1) / variant.tokens_per_s,
        None if power is None else power.decode_w,
    )


def reading_place(search: Search, spec: DecoderSpec, placement: Placement, threads_given: bool) -> Placement:
    """Where a model reads a prompt: with more threads than it decodes with, unless their number is given."""
    return placement if threads_given else prompt_placement(search.costs(spec), placement, CHUNK)


def chunk_widths(search: Search, spec: DecoderSpec, placement: Placement) -> tuple[int, ...]:
    """Tokens of the chunks that a bundle has for prompts, ascending."""
    long = long_chunk(search, spec, placement, search.question.cache_rows or 2 * search.question.context)
    return (CHUNK,) if long is None else (CHUNK, long)


def long_chunk(search: Search, spec: DecoderSpec, placement: Placement, context: int) -> int | None:
    """Tokens of a second, wider chunk that is worth its compilation, or None.

    It is when it saves much of the time of a prompt that takes half of the context, and a time that is noticed; of two
    that save about the same it is the narrower one. An eighth of the context at most is a chunk.
    """
    tokens = context // 2
    narrow_s = prompt_s(search, spec, placement, tokens)
    times = {n: prompt_s(search, spec, placement, tokens, (CHUNK, n)) for n in LONG_CHUNKS if 8 * n <= context}
    least_s = min(times.values(), default=narrow_s)
    if least_s > (1 - _WORTH) * narrow_s or least_s > narrow_s - _NOTICED_S:
        return None
    return next(n for n, seconds in times.items() if seconds <= (1 + _ALIKE) * least_s)


def prompt_s(
    search: Search, spec: DecoderSpec, placement: Placement, tokens: int, widths: Sequence[int] = (CHUNK,)
) -> float:
    """Seconds to read a prompt in chunks of these widths, the rest in a chunk of its own; the last one has logits.

    A few of the widest chunks are priced at their place in the prompt; those between cost what their neighbours say on
    average.
    """
    width = widths[-1]
    whole = (tokens - 1) // width
    count = min(whole, _SAMPLES)
    at = [round(i * (whole - 1) / max(1, count - 1)) for i in range(count)]
    times = [ModelCosts(search.roofline, spec, width * i).prompt_chunk_s(placement, width, fills=True) for i in at]
    mean = sum(times) / max(1, count) if count in (0, whole) else _trapezoids(at, times) / (at[-1] - at[0])
    seconds, past = whole * mean, width * whole
    while past < tokens:
        n = min(next_chunk(tokens - past, widths), tokens - past)
        fills = past + n < tokens
        seconds += ModelCosts(search.roofline, spec, past).prompt_chunk_s(placement, n, fills)
        past += n
    return seconds


def _trapezoids(xs: list[int], ys: list[float]) -> float:
    return sum((xs[i + 1] - xs[i]) * (ys[i + 1] + ys[i]) / 2 for i in range(len(xs) - 1))
