"""Which drafts are verified in a round of a batch, and who makes them: those that make the batch fastest.

The rows are shared out in draft_rows.py. Here a draft model is weighed against drafts that are there already, and what
it has to read first against what it gains on the rest of the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from costmodel.batch import StepTimes
from costmodel.draft_rows import Offer, RoundSoFar, share_rows
from costmodel.prompt_chunks import next_pieces

MOST_DRAFTED = 7  # tokens of a text in a round
MOST_UNREAD = 8  # tokens that a draft model takes in with its first step; more are read before
_LIKELY = 0.95  # acceptance of drafts as good as they come


@dataclass(frozen=True)
class ChosenDrafts:
    """What is drafted for each text, and for whom the draft model reads.

    Attributes:
        gammas: drafted tokens.
        modelled: whether the draft model makes them.
        drafting_s: that it takes for them.
        pieces: (text, tokens) that it reads, because it gains more on what is left of all texts than reading takes.
        branches: tokens of each text's branch; none has any where it is empty.
    """

    gammas: Sequence[int]
    modelled: Sequence[bool]
    drafting_s: float = 0.0
    pieces: Sequence[tuple[int, int]] = ()
    branches: Sequence[int] = ()


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
        return ChosenDrafts(best.gammas, used, best.drafting_s, branches=best.branches)
    read = [replace(offer, unread=min(offer.unread, 1)) for offer in mixed(better)]
    then = share_rows(read, so_far, times, drafter)
    behind = [i for i, gamma in enumerate(then.gammas) if gamma and better[i] and not near[i]]
    pieces = [(i, *piece) for i in behind for piece in _reading(modelled[i].unread, drafter)]
    if left / best.tokens_per_s - left / then.tokens_per_s <= sum(takes for _, _, takes in pieces):
        return ChosenDrafts(best.gammas, used, best.drafting_s, branches=best.branches)
    ends = accumulate((takes for _, _, takes in pieces), initial=best.round_s)
    fitting = [piece[:2] for piece, end in zip(pieces, [*ends][1:], strict=True) if end <= so_far.bound_s]
    return ChosenDrafts(best.gammas, used, best.drafting_s, fitting, best.branches)


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
