"""What requests that come together get: rounds as a server makes them, counted out by the times of their calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from costmodel.batch import BOUND_STEPS, Unread, admits, plan_reading
from costmodel.batch_calls import CallTimes
from costmodel.batch_drafts import MOST_DRAFTED, Offer, share_rows
from costmodel.schema.batch import BatchPrediction
from costmodel.speculative import expected_tokens


@dataclass(frozen=True)
class Requests:
    """What is asked: so many requests at once, each with a prompt and an answer of so many tokens."""

    count: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Throughput:
    """What they get.

    Attributes:
        seconds: until the last answer is whole.
        alone_s: the same answers one after the other.
        tokens_per_s, alone_tokens_per_s: generated tokens, prompts included in the time.
        gap_s: between two tokens of a text, the mean.
        longest_gap_s: between two rounds that gave it tokens.
        first_token_s: until a request has its first token, the mean.
        rows_filled: share of the rows of calls for several texts that were needed.
        prompt_share: of the time, that which reading takes in calls of its own.
        drafted_per_round: tokens drafted in a round, of all texts.
        bound_s: that a text was to wait at most for its next token.
    """

    seconds: float
    alone_s: float
    tokens_per_s: float
    alone_tokens_per_s: float
    gap_s: float
    longest_gap_s: float
    first_token_s: float
    rows_filled: float
    prompt_share: float
    drafted_per_round: float
    bound_s: float


@dataclass(frozen=True)
class Drafting:
    """Drafts of every text: their acceptance, the share of rounds in which there are any, and how many at most."""

    alpha: float
    match: float = 1.0
    most: int = MOST_DRAFTED


class _Text:
    """A request: tokens in its slot, of its prompt that are not read, and of its answer that are left; means."""

    def __init__(self, asked: Requests, credit: float) -> None:
        self.past, self.unread, self.left = 0.0, asked.prompt_tokens, float(asked.new_tokens)
        self.told_s: list[float] = []
        self._credit = credit  # of rounds with a match

    @property
    def reading(self) -> bool:
        return self.unread > 1

    def feed(self, tokens: int, now_s: float, made: float = 1.0) -> None:
        """Rows of the prompt; with the last one, and after it, tokens come."""
        read = min(tokens, self.unread)
        self.unread -= read
        self.past += read or made
        if not self.unread:
            self.told_s.append(now_s)
            self.left -= made

    def offer(self, drafting: Drafting | None) -> Offer:
        """What it could draft in this round."""
        if drafting is None or not self.told_s:
            return Offer(0.0, 0)
        self._credit += drafting.match
        if self._credit < 1.0:
            return Offer(0.0, 0)
        self._credit -= 1.0
        return Offer(drafting.alpha, min(drafting.most, max(0, math.ceil(self.left) - 1)))


def throughput(
    asked: Requests,
    slots: int,
    calls: BatchPrediction,
    bound_s: float | None = None,
    drafting: Drafting | None = None,
) -> Throughput:
    """Count the rounds of requests that come together; `bound_s` None is BOUND_STEPS steps of one text alone."""
    times = CallTimes(calls)
    bound = BOUND_STEPS * times.rows_s(1) if bound_s is None else bound_s
    texts = [_Text(asked, i / asked.count) for i in range(asked.count)]
    waiting, at_work = texts[::-1], list[_Text]()
    now = reading_s = 0.0
    rows = computed = rounds = drafted = 0
    while waiting or at_work:
        while waiting and len(at_work) < slots and admits(len(at_work), bound, times):
            at_work.append(waiting.pop())
        prompts = [text for text in at_work if text.reading]
        pasts = [text.past for text in at_work if not text.reading]
        times.past = sum(pasts) / len(pasts) if pasts else 0.0
        planned = plan_reading([Unread(int(t.past), t.unread) for t in prompts], len(pasts), bound, times)
        begin, now = now, now + calls.round_s
        for i, tokens in planned.pieces:
            took = times.read_s(tokens, int(prompts[i].past))
            now, reading_s = now + took, reading_s + took
            prompts[i].feed(tokens, now)
        running = [text for text in at_work if not text.reading and text.left > 0]
        riding = [(prompts[i], tokens) for i, tokens in planned.riding if prompts[i] not in running]
        count = len(running) + sum(tokens for _, tokens in riding)
        offers = [text.offer(drafting) for text in running]
        gammas = share_rows(offers, count, len(running), now - begin, bound, times)
        count += sum(gammas)
        rounds, drafted = rounds + 1, drafted + sum(gammas)
        fed = [*((text, 1 + gamma) for text, gamma in zip(running, gammas, strict=True)), *riding]
        times.past = sum(text.past * tokens for text, tokens in fed) / count if count else 0.0
        now, rows = now + times.rows_s(count), rows + count
        computed += sum(calls.row_width(part) for part in times.parts(count))
        for text, gamma, offer in zip(running, gammas, offers, strict=True):
            text.feed(1, now, expected_tokens(offer.alpha, gamma))
        for text, tokens in riding:
            text.feed(tokens, now)
        at_work = [text for text in at_work if text.left > 0]
    alone = asked.count * _alone_s(asked, times)
    gaps = [b - a for text in texts for a, b in pairwise(text.told_s)]
    tokens = asked.count * asked.new_tokens
    return Throughput(
        now,
        alone,
        tokens / now,
        tokens / alone,
        sum(gaps) / (tokens - asked.count) if gaps else 0.0,
        max(gaps, default=0.0),
        sum(text.told_s[0] for text in texts) / len(texts),
        rows / computed if computed else 1.0,
        reading_s / now,
        drafted / rounds,
        bound,
    )


def _alone_s(asked: Requests, times: CallTimes) -> float:
    """One request on its own: its prompt in pieces, then step by step."""
    done, took, calls = 0, 0.0, times.predicted
    while done < asked.prompt_tokens:
        tokens = min(times.chunk, asked.prompt_tokens - done)
        took, done = took + times.read_s(tokens, done), done + tokens
    for made in range(1, asked.new_tokens):
        took += calls.row_call_s(1, asked.prompt_tokens + made - 1) + calls.round_s
    return took
