"""What requests that come together get: rounds as a server makes them, counted out by the times of their calls.

Where their prompts begin in common, the first one reads that beginning and the others take its rows over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from costmodel.batch import BOUND_STEPS, LEAST_SHARED, Unread, admits, plan_reading
from costmodel.batch_calls import CallTimes
from costmodel.batch_drafts import ChosenDrafts, choose_drafts
from costmodel.batch_text import BatchText, Drafting, ModelDrafting
from costmodel.draft_rows import NOTHING, BranchRounds, RoundSoFar, expected_of_branch, share_rows
from costmodel.prompt_chunks import next_pieces
from costmodel.schema.batch import BatchPrediction
from costmodel.speculative import expected_tokens


@dataclass(frozen=True)
class Requests:
    """What is asked: so many requests at once, each with a prompt and an answer of so many tokens.

    Attributes:
        shared_tokens: that all prompts begin with in common.
    """

    count: int
    prompt_tokens: int
    new_tokens: int
    shared_tokens: int = 0

    @property
    def taken_over(self) -> int:
        """Tokens that a prompt has from another one; the last one of a prompt is always read."""
        shared = min(self.shared_tokens, self.prompt_tokens - 1)
        return shared if shared >= LEAST_SHARED else 0

    @property
    def read_tokens(self) -> int:
        """Tokens of all prompts that are read."""
        return self.count * self.prompt_tokens - (self.count - 1) * self.taken_over


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
        branches_per_round: branches of drafts in a round, of all texts.
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
    branches_per_round: float = 0.0


def throughput(
    asked: Requests,
    slots: int,
    calls: BatchPrediction,
    bound_s: float | None = None,
    drafting: Drafting | None = None,
    model: ModelDrafting | None = None,
    branch_s: float | None = None,
) -> Throughput:
    """Count the rounds of requests that come together.

    Args:
        asked: the requests.
        slots: texts at a time.
        calls: of the target.
        bound_s: that a text waits at most for its next token; None is BOUND_STEPS steps of one text alone.
        drafting: drafts from the texts themselves.
        model: drafts of a model.
        branch_s: that giving a free slot the rows of a text for a branch takes; None: no slot can have them.
    """
    times, drafter = CallTimes(calls), None if model is None else CallTimes(model.calls)
    bound = BOUND_STEPS * times.rows_s(1) if bound_s is None else bound_s
    texts = [BatchText(asked.prompt_tokens, asked.new_tokens, i / asked.count) for i in range(asked.count)]
    waiting, at_work = texts[::-1], list[BatchText]()
    now = reading_s = 0.0
    rows = computed = rounds = drafted = branched = 0
    branch_rounds = BranchRounds()
    while waiting or at_work:
        while waiting and len(at_work) < slots and admits(len(at_work), bound, times):
            at_work.append(waiting.pop())
        for text in at_work:
            if text.past < asked.taken_over <= texts[0].past:
                text.take_over(asked.taken_over)
        prompts = [text for text in at_work if text.reading and (text is texts[0] or text.past >= asked.taken_over)]
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
        free = 0 if branch_s is None else slots - len(at_work)
        found = [text.offer(drafting, free > 0) for text in running]
        modelled = [NOTHING if model is None else text.model_offer(model, free > 0) for text in running]
        drafts = any(offer.most for offer in (*found, *modelled))
        free = branch_rounds.free_slots(free) if drafts else 0
        used_s = now - begin - calls.round_s
        so_far = RoundSoFar(count, len(running), calls.round_s, bound - used_s, free, [branch_s or 0.0] * len(running))
        if model is None or drafter is None:
            shared = share_rows(found, so_far, times)
            chosen = ChosenDrafts(shared.gammas, [False] * len(found), branches=shared.branches)
        else:
            left = math.ceil(sum(t.left for t in running))
            chosen = choose_drafts(found, modelled, left, so_far, times, drafter)
            for i, tokens in chosen.pieces:
                now, running[i].held = now + drafter.read_s(tokens, 0), running[i].held + tokens
            now += chosen.drafting_s
        gammas, branches = chosen.gammas, chosen.branches or [0] * len(running)
        if drafts:
            branch_rounds.note(branches)
        of_texts = [1 + gamma + (tokens and 1 + tokens) for gamma, tokens in zip(gammas, branches, strict=True)]
        begun = sum(tokens > 0 for tokens in branches)
        count, now = count + sum(of_texts) - len(running), now + begun * (branch_s or 0.0)
        rounds, drafted, branched = rounds + 1, drafted + sum(gammas), branched + begun
        fed = [*zip(running, of_texts, strict=True), *riding]
        times.past = sum(text.past * tokens for text, tokens in fed) / count if count else 0.0
        now, rows = now + times.rows_s(count), rows + count
        computed += sum(calls.row_width(part) for part in times.parts(count))
        for i, text in enumerate(running):
            offer = modelled[i] if chosen.modelled[i] else found[i]
            if chosen.modelled[i] and gammas[i]:
                text.held = text.past + expected_tokens(offer.alpha, gammas[i] - 1)  # the last draft is not fed
            text.feed(1, now, expected_tokens(offer.alpha, gammas[i]) + expected_of_branch(offer, branches[i]))
        for text, tokens in riding:
            text.feed(tokens, now)
        at_work = [text for text in at_work if text.left > 0]
    alone = _alone_s(asked, times, 0) + (asked.count - 1) * _alone_s(asked, times, asked.taken_over)
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
        branched / rounds,
    )


def _alone_s(asked: Requests, times: CallTimes, done: int) -> float:
    """One request on its own: its prompt after `done` tokens in pieces, then step by step."""
    took, calls = 0.0, times.predicted
    while done < asked.prompt_tokens:
        tokens, _ = next_pieces(asked.prompt_tokens - done, times.chunks)[0]
        took, done = took + times.read_s(tokens, done), done + tokens
    for made in range(1, asked.new_tokens):
        took += calls.row_call_s(1, asked.prompt_tokens + made - 1) + calls.round_s
    return took
