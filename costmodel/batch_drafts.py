"""Which drafts are verified in a round of a batch: those whose rows earn most.

    tokens/s = (running + sum of alpha_i^k over the drafts) / (other + D + T(rows + drafts))

The k-th draft of a text is worth alpha_i^k tokens, so drafts are taken by falling worth, and how many is where the
quotient is largest. Of one text that is the draft length of speculative.py; with each text more the rows of a call
fill, and fewer are left for each. D is what a draft model takes: a step for the first drafts of all texts together,
one for the second ones of those that have any, and so on.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from costmodel.batch import StepTimes
from costmodel.prompt_chunks import next_pieces

MOST_DRAFTED = 7  # tokens of a text in a round
MOST_UNREAD = 8  # tokens that a draft model takes in with its first step; more are read before
_LIKELY = 0.95  # acceptance of drafts as good as they come


@dataclass(frozen=True)
class Offer:
    """What a text could have verified.

    Attributes:
        alpha: acceptance of a drafted token.
        most: how many there are.
        unread: tokens of the text that a draft model takes in before the first one; 0: the drafts are there already.
    """

    alpha: float
    most: int
    unread: int = 0


NOTHING = Offer(0.0, 0)


@dataclass(frozen=True)
class RoundSoFar:
    """A round before drafts are taken.

    Attributes:
        rows: of it without drafts, those of prompts among them.
        running: texts that get a token each in any case.
        other_s: what every round takes beside its calls.
        bound_s: that these, the drafts and the call of the rows must not exceed because of drafts.
    """

    rows: int
    running: int
    other_s: float
    bound_s: float


@dataclass(frozen=True)
class SharedRows:
    """Drafted tokens of each text, the speed with them, seconds of the round and, of them, of a draft model."""

    gammas: list[int]
    tokens_per_s: float
    round_s: float
    drafting_s: float


def share_rows(
    offers: Sequence[Offer], so_far: RoundSoFar, times: StepTimes, drafter: StepTimes | None = None
) -> SharedRows:
    """Drafted tokens of each running text, so that the batch is fastest.

    Args:
        offers: of the running texts.
        so_far: the round.
        times: of the target's calls.
        drafter: of the draft model's, where offers have tokens for it to take in.
    """
    if not so_far.running:
        return SharedRows([], 0.0, 0.0, 0.0)
    worth = [(-offer.alpha, i) for i, offer in enumerate(offers) if offer.most > 0 and offer.alpha > 0]
    heapq.heapify(worth)
    plain_s = so_far.other_s + times.rows_s(so_far.rows)
    tokens, best, kept, order = float(so_far.running), so_far.running / plain_s, 0, list[int]()
    round_s, drafting_s = plain_s, 0.0
    gammas, steps = [0] * len(offers), list[int]()  # rows of each step of the draft model
    steps_s = list[float]()
    while worth:
        value, i = heapq.heappop(worth)
        if drafter is not None and offers[i].unread:
            step = gammas[i]
            if step == len(steps):
                steps.append(0)
                steps_s.append(0.0)
            steps[step] += offers[i].unread if step == 0 else 1
            steps_s[step] = drafter.rows_s(steps[step])
        takes = so_far.other_s + sum(steps_s) + times.rows_s(so_far.rows + len(order) + 1)
        if takes > max(so_far.bound_s, plain_s):
            break
        tokens -= value
        order.append(i)
        gammas[i] += 1
        if gammas[i] < offers[i].most:
            heapq.heappush(worth, (value * offers[i].alpha, i))
        if tokens / takes > best:
            best, kept, round_s, drafting_s = tokens / takes, len(order), takes, sum(steps_s)
    for i in order[kept:]:
        gammas[i] -= 1
    return SharedRows(gammas, best, round_s, drafting_s)


@dataclass(frozen=True)
class ChosenDrafts:
    """What is drafted for each text, and for whom the draft model reads.

    Attributes:
        gammas: drafted tokens.
        modelled: whether the draft model makes them.
        drafting_s: that it takes for them.
        pieces: (text, tokens) that it reads, because it gains more on what is left of all texts than reading takes.
    """

    gammas: Sequence[int]
    modelled: Sequence[bool]
    drafting_s: float = 0.0
    pieces: Sequence[tuple[int, int]] = ()


def choose_drafts(
    found: Sequence[Offer],
    modelled: Sequence[Offer],
    left: int,
    so_far: RoundSoFar,
    times: StepTimes,
    drafter: StepTimes,
) -> ChosenDrafts:
    """Drafts of a model where they are accepted more often, if that makes the batch faster than without the model.

    Args:
        found: drafts of each text that are there already.
        modelled: what the draft model could make for it.
        left: tokens that are still to be written, of all texts.
        so_far: the round.
        times: of the target's calls.
        drafter: of the draft model's.
    """
    better = [model.alpha > free.alpha and model.most > 0 for free, model in zip(found, modelled, strict=True)]
    near = [good and model.unread <= MOST_UNREAD for good, model in zip(better, modelled, strict=True)]

    def mixed(use: Sequence[bool]) -> list[Offer]:
        return [model if u else free for u, free, model in zip(use, found, modelled, strict=True)]

    best, used = share_rows(found, so_far, times), [False] * len(found)
    if any(near):
        with_model = share_rows(mixed(near), so_far, times, drafter)
        if with_model.tokens_per_s > best.tokens_per_s:
            best, used = with_model, near
    if near == better:
        return ChosenDrafts(best.gammas, used, best.drafting_s)
    read = [replace(offer, unread=min(offer.unread, 1)) for offer in mixed(better)]
    then = share_rows(read, so_far, times, drafter)
    behind = [i for i, gamma in enumerate(then.gammas) if gamma and better[i] and not near[i]]
    pieces = [(i, *piece) for i in behind for piece in _reading(modelled[i].unread, drafter)]
    if left / best.tokens_per_s - left / then.tokens_per_s <= sum(takes for _, _, takes in pieces):
        return ChosenDrafts(best.gammas, used, best.drafting_s)
    ends = accumulate((takes for _, _, takes in pieces), initial=best.round_s)
    fitting = [piece[:2] for piece, end in zip(pieces, [*ends][1:], strict=True) if end <= so_far.bound_s]
    return ChosenDrafts(best.gammas, used, best.drafting_s, fitting)


def _reading(unread: int, drafter: StepTimes) -> list[tuple[int, float]]:
    """Tokens and seconds of the calls in which a draft model reads all of a text but its last token."""
    found, left = list[tuple[int, float]](), unread - 1
    while left > 0:
        tokens, _ = next_pieces(left, drafter.chunks)[0]
        found.append((tokens, drafter.read_s(tokens, unread - 1 - left)))
        left -= tokens
    return found


def drafts_may_pay(
    rows: int, running: int, other_s: float, most: int, times: StepTimes, drafter: StepTimes | None = None
) -> bool:
    """Whether drafts as good as they come, `most` a text, would make a round faster: else none are looked for.

    With a `drafter` it makes them, one step for a draft of every text.
    """
    plain = running / (other_s + times.rows_s(rows))

    def pays(drafts: int) -> bool:
        whole, rest = divmod(drafts, running)
        steps_s = 0.0 if drafter is None else whole * drafter.rows_s(running) + drafter.rows_s(rest)
        return (running + _LIKELY * drafts) / (other_s + steps_s + times.rows_s(rows + drafts)) > plain

    return any(pays(drafts) for drafts in range(1, most * running + 1))
