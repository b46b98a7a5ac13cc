"""Which drafts are verified in a round of a batch: those whose rows earn most.

    tokens/s = (running + sum of alpha_i^k over the drafts) / (other + T(rows + drafts))

The k-th draft of a text is worth alpha_i^k tokens, so drafts are taken by falling worth, and how many is where the
quotient is largest. Of one text that is the draft length of speculative.py; with each text more the rows of a call
fill, and fewer are left for each.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.batch import StepTimes

_LIKELY = 0.95  # acceptance of drafts as good as they come


@dataclass(frozen=True)
class Offer:
    """What a text could have verified: the acceptance of a drafted token, and how many there are."""

    alpha: float
    most: int


def share_rows(
    offers: Sequence[Offer], rows: int, running: int, other_s: float, bound_s: float, times: StepTimes
) -> list[int]:
    """Drafted tokens of each text, so that the batch is fastest.

    Args:
        offers: of the running texts.
        rows: of the round without drafts, those of prompts among them.
        running: texts that get a token each in any case.
        other_s: the rest of the round.
        bound_s: that the round must not exceed because of drafts.
        times: of the calls.
    """
    worth = [(-offer.alpha, i) for i, offer in enumerate(offers) if offer.most > 0 and offer.alpha > 0]
    heapq.heapify(worth)
    plain_s = other_s + times.rows_s(rows)
    tokens, best, kept, order = float(running), running / plain_s, 0, list[int]()
    left = [offer.most for offer in offers]
    while worth:
        value, i = heapq.heappop(worth)
        takes = other_s + times.rows_s(rows + len(order) + 1)
        if takes > max(bound_s, plain_s):
            break
        tokens -= value
        order.append(i)
        left[i] -= 1
        if left[i]:
            heapq.heappush(worth, (value * offers[i].alpha, i))
        if tokens / takes > best:
            best, kept = tokens / takes, len(order)
    gammas = [0] * len(offers)
    for i in order[:kept]:
        gammas[i] += 1
    return gammas


def drafts_may_pay(rows: int, running: int, other_s: float, most: int, times: StepTimes) -> bool:
    """Whether drafts as good as they come, `most` a text, would make a round faster: else none are looked for."""
    plain = running / (other_s + times.rows_s(rows))
    return any(
        (running + _LIKELY * drafts) / (other_s + times.rows_s(rows + drafts)) > plain
        for drafts in range(1, most * running + 1)
    )
