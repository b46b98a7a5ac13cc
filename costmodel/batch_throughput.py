"""What requests that come together get: rounds as a server makes them, counted out by the times of their calls."""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.batch import BOUND_STEPS, Unread, admits, plan_reading
from costmodel.batch_calls import CallTimes
from costmodel.schema.batch import BatchPrediction


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
        gap_s, longest_gap_s: between two tokens of a text, the mean and the longest.
        first_token_s: until a request has its first token, the mean.
        rows_filled: share of the rows of calls for several texts that were needed.
        prompt_share: of the time, that which reading takes in calls of its own.
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
    bound_s: float


class _Text:
    def __init__(self, asked: Requests) -> None:
        self.past, self.unread, self.left = 0, asked.prompt_tokens, asked.new_tokens
        self.told_s: list[float] = []

    @property
    def reading(self) -> bool:
        return self.unread > 1

    def feed(self, tokens: int) -> None:
        """Rows of the prompt, or of its last token."""
        self.past += tokens
        self.unread = max(0, self.unread - tokens)

    def tell(self, now_s: float) -> None:
        self.told_s.append(now_s)
        self.left -= 1


def throughput(asked: Requests, slots: int, calls: BatchPrediction, bound_s: float | None = None) -> Throughput:
    """Count the rounds of requests that come together; `bound_s` None is BOUND_STEPS steps of one text alone."""
    times = CallTimes(calls)
    bound = BOUND_STEPS * times.rows_s(1) if bound_s is None else bound_s
    texts = [_Text(asked) for _ in range(asked.count)]
    waiting, at_work = texts[::-1], list[_Text]()
    now = reading_s = rows_s = 0.0
    rows = computed = 0
    while waiting or at_work:
        while waiting and len(at_work) < slots and admits(len(at_work), bound, times):
            at_work.append(waiting.pop())
        prompts = [text for text in at_work if text.reading]
        running = [text.past for text in at_work if not text.reading]
        times.past = sum(running) / len(running) if running else 0.0
        planned = plan_reading([Unread(t.past, t.unread) for t in prompts], len(running), bound, times)
        now += calls.round_s
        for i, tokens in planned.pieces:
            text = prompts[i]
            took = times.read_s(tokens, text.past)
            now, reading_s = now + took, reading_s + took
            text.feed(tokens)
            if not text.unread:
                text.tell(now)
        batch = {id(text): 1 for text in at_work if not text.reading and text.left}
        batch |= {id(prompts[i]): tokens for i, tokens in planned.riding}
        fed = [(text, batch[id(text)]) for text in at_work if id(text) in batch]
        count = sum(tokens for _, tokens in fed)
        times.past = sum(text.past * tokens for text, tokens in fed) / count if count else 0.0
        took = times.rows_s(count)
        now, rows_s, rows = now + took, rows_s + took, rows + count
        computed += sum(calls.row_width(part) for part in times.parts(count))
        for text, tokens in fed:
            text.feed(tokens)
            if not text.unread:
                text.tell(now)
        at_work = [text for text in at_work if text.left]
    alone = asked.count * _alone_s(asked, times)
    gaps = [b - a for text in texts for a, b in zip(text.told_s, text.told_s[1:], strict=False)]
    tokens = asked.count * asked.new_tokens
    return Throughput(
        now,
        alone,
        tokens / now,
        tokens / alone,
        sum(gaps) / len(gaps) if gaps else 0.0,
        max(gaps, default=0.0),
        sum(text.told_s[0] for text in texts) / len(texts),
        rows / computed if computed else 1.0,
        reading_s / now,
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
