"""A text of a batch, as the rounds of requests that come together are counted out, and what it drafts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from costmodel.batch_drafts import MOST_DRAFTED
from costmodel.draft_rows import NOTHING, Offer
from costmodel.schema.batch import BatchPrediction


@dataclass(frozen=True)
class Drafting:
    """Drafts of every text from what it has.

    Attributes:
        alpha: acceptance of a drafted token.
        match: share of rounds in which there are any.
        most: of them, and of tokens in a branch.
        beta: how often a branch begins right where the first draft is wrong; 0 without branches.
    """

    alpha: float
    match: float = 1.0
    most: int = MOST_DRAFTED
    beta: float = 0.0


@dataclass(frozen=True)
class ModelDrafting:
    """Drafts of a model: their acceptance, its calls, how many of a text at most, and beta of its second choices."""

    alpha: float
    calls: BatchPrediction
    most: int = MOST_DRAFTED
    beta: float = 0.0


class BatchText:
    """A text of a batch whose rounds are counted out; numbers of tokens are means.

    Attributes:
        past: tokens in its slot.
        unread: of its prompt, not in its slot.
        left: of its answer, still to come.
        held: in its slot of a draft model.
        told_s: when tokens came.
    """

    def __init__(self, prompt_tokens: int, new_tokens: int, credit: float) -> None:
        """Nothing is read; `credit` counts rounds with a match, of which the first whole one has drafts."""
        self.past, self.unread, self.left = 0.0, prompt_tokens, float(new_tokens)
        self.held = 0.0
        self.told_s: list[float] = []
        self._credit = credit

    @property
    def reading(self) -> bool:
        """Whether more than one token is to be fed before the next one is known."""
        return self.unread > 1

    def take_over(self, rows: int) -> None:
        """Have the first rows, up to this number, from a text that begins as this one does."""
        self.unread -= rows - int(self.past)
        self.past = float(rows)

    def feed(self, tokens: int, now_s: float, made: float = 1.0) -> None:
        """Rows of the prompt; with the last one, and after it, tokens come."""
        read = min(tokens, self.unread)
        self.unread -= read
        self.past += read or made
        if not self.unread:
            self.told_s.append(now_s)
            self.left -= made

    def offer(self, drafting: Drafting | None, branches: bool = False) -> Offer:
        """What it could draft in this round, in a branch, too, where there can be one."""
        if drafting is None or not self.told_s:
            return NOTHING
        self._credit += drafting.match
        if self._credit < 1.0:
            return NOTHING
        self._credit -= 1.0
        most = min(drafting.most, max(0, math.ceil(self.left) - 1))
        return Offer(drafting.alpha, most, 0, drafting.beta, most if branches and drafting.beta else 0)

    def model_offer(self, model: ModelDrafting, branches: bool = False) -> Offer:
        """What a model could draft in this round; a branch of it has one token."""
        most = min(model.most, max(0, math.ceil(self.left) - 1))
        unread = max(1, round(self.past + 1 - self.held))
        in_branch = int(branches and model.beta > 0)
        return Offer(model.alpha, most, unread, model.beta, in_branch) if self.told_s and most else NOTHING
