"""How the rows of a call are shared among drafts: those get them that earn most.

    tokens/s = (running + sum of alpha_i^k over the drafts + sum over the branches) / (other + D + B + T(rows + drafts))

The k-th draft of a text is worth alpha_i^k tokens, so drafts are taken by falling worth, and how many is where the
quotient is largest. Of one text that is the draft length of speculative.py; with each text more the rows of a call
fill, and fewer are left for each. D is what a draft model takes: a step for the first drafts of all texts together,
one for the second ones of those that have any, and so on.

A branch begins with another token than the first draft. That one is wrong (1 - alpha_i) of the times, and the branch is
right in beta_i of these: its first token is worth w = (1 - alpha_i) beta_i, its m-th w alpha_i^(m-1). It has a slot of
its own, in which the last token of the text is fed again: the first token takes two rows, w / 2 for each. B is what
giving slots the rows of texts takes. A branch at a later draft would feed all drafts before it again, for a chance of
alpha_i^j w.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from costmodel.batch import StepTimes

_BRANCHES_EACH = 4  # rounds with drafts, in one of which it is asked whether branches pay where they did not
_LEAST_GAIN = 1.03  # believed of branches: rows of two slots read a little more than as many of one, and beliefs differ


@dataclass(frozen=True)
class Offer:
    """What a text could have verified.

    Attributes:
        alpha: acceptance of a drafted token.
        most: how many there are.
        unread: tokens of the text that a draft model takes in before the first one; 0: the drafts are there already.
        beta: how often the branch begins right where the first draft is rejected.
        most_in_branch: tokens that it has.
    """

    alpha: float
    most: int
    unread: int = 0
    beta: float = 0.0
    most_in_branch: int = 0


NOTHING = Offer(0.0, 0)


class BranchRounds:
    """The rounds in which it is asked whether branches pay: it takes as long as sharing the rows without them."""

    def __init__(self) -> None:
        """None had branches."""
        self._without = 0

    def free_slots(self, free: int) -> int:
        """So many slots that are free, or 0 where it is not asked."""
        return free if self._without % _BRANCHES_EACH == 0 else 0

    def note(self, branches: Sequence[int]) -> None:
        """A round's tokens in each text's branch."""
        self._without = 0 if any(branches) else self._without + 1


def expected_of_branch(offer: Offer, tokens: int) -> float:
    """Tokens of a text that come by a branch of so many: w + w alpha + ... (above)."""
    right = (1 - offer.alpha) * offer.beta
    return right * sum(offer.alpha**m for m in range(tokens))


@dataclass(frozen=True)
class RoundSoFar:
    """A round before drafts are taken.

    Attributes:
        rows: of it without drafts, those of prompts among them.
        running: texts that get a token each in any case.
        other_s: what every round takes beside its calls.
        bound_s: that these, the drafts and the call of the rows must not exceed because of drafts.
        free_slots: for branches.
        branch_s: that giving one of them the rows of each text takes; needed where there are any.
    """

    rows: int
    running: int
    other_s: float
    bound_s: float
    free_slots: int = 0
    branch_s: Sequence[float] = ()


@dataclass(frozen=True)
class SharedRows:
    """Drafted tokens of each text and of its branch, the speed, seconds of the round and, of them, of a draft model."""

    gammas: list[int]
    branches: list[int]
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
        return SharedRows([], [], 0.0, 0.0, 0.0)
    found = _by_worth(offers, so_far, times, drafter, 0)
    if so_far.free_slots and any(offer.most_in_branch for offer in offers):
        with_branches = _by_worth(offers, so_far, times, drafter, so_far.free_slots)
        return with_branches if with_branches.tokens_per_s > _LEAST_GAIN * found.tokens_per_s else found
    return found


def _by_worth(
    offers: Sequence[Offer], so_far: RoundSoFar, times: StepTimes, drafter: StepTimes | None, free_slots: int
) -> SharedRows:
    """Take drafts by their worth for a row, those of branches in at most so many slots among them."""
    worth = [(-offer.alpha, i, False) for i, offer in enumerate(offers) if offer.most > 0 and offer.alpha > 0]
    heapq.heapify(worth)
    plain_s = so_far.other_s + times.rows_s(so_far.rows)
    tokens, best, kept = float(so_far.running), so_far.running / plain_s, 0
    round_s, drafting_s, rows, branches_s = plain_s, 0.0, so_far.rows, 0.0
    order = list[tuple[int, bool]]()  # the text of each token that was taken, and whether it is in the branch
    gammas, branches, steps = [0] * len(offers), [0] * len(offers), list[int]()  # rows of each step of the draft model
    steps_s = list[float]()
    while worth:
        value, i, in_branch = heapq.heappop(worth)
        offer, taken = offers[i], branches if in_branch else gammas
        begins = in_branch and not branches[i]
        if begins:
            if not free_slots:
                continue
            free_slots, branches_s = free_slots - 1, branches_s + so_far.branch_s[i]
        elif not in_branch and drafter is not None and offer.unread:
            step = gammas[i]
            if step == len(steps):
                steps.append(0)
                steps_s.append(0.0)
            steps[step] += offer.unread if step == 0 else 1
            steps_s[step] = drafter.rows_s(steps[step])
        rows += 2 if begins else 1
        takes = so_far.other_s + sum(steps_s) + branches_s + times.rows_s(rows)
        if takes > max(so_far.bound_s, plain_s):
            break
        value *= 2 if begins else 1
        tokens -= value
        order.append((i, in_branch))
        taken[i] += 1
        if taken[i] < (offer.most_in_branch if in_branch else offer.most):
            heapq.heappush(worth, (value * offer.alpha, i, in_branch))
        if not in_branch and gammas[i] == 1 and free_slots and offer.most_in_branch and offer.beta:
            heapq.heappush(worth, ((offer.alpha - 1) * offer.beta / 2, i, True))
        if tokens / takes > best:
            best, kept, round_s, drafting_s = tokens / takes, len(order), takes, sum(steps_s)
    for i, in_branch in order[kept:]:
        (branches if in_branch else gammas)[i] -= 1
    return SharedRows(gammas, branches, best, round_s, drafting_s)
