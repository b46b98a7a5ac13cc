"""How many tokens to draft in a round. Any choice gives the same greedy text and the same law of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hetero_sd.runtime.decode.drafters import Offer
from hetero_sd.runtime.decode.stopping import DraftLimit
from hetero_sd.runtime.decode.trace import Round, Switch


@dataclass(frozen=True)
class Choice:
    """What the next round does.

    Attributes:
        source: the offer that is taken, "" for none.
        gamma: tokens to draft from it; 0 is a plain decoding step.
        read: tokens of the text that the drafter reads before.
        skip: tokens before those that it leaves out.
        switches: changes of the draft length of a source, made for this round.
        limit: ends the draft before gamma tokens, by the drafter's confidence; None: it has that length.
    """

    source: str = ""
    gamma: int = 0
    read: int = 0
    skip: int = 0
    switches: tuple[Switch, ...] = ()
    limit: DraftLimit | None = None


PLAIN = Choice()


class GammaPolicy(Protocol):
    """Decides, before each round, what is drafted."""

    def begin(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Start a text."""

    def read_first(self, offers: Sequence[Offer], prefill_s: float) -> int:
        """Return how many tokens the drafter reads before the first token is shown, which took ``prefill_s``."""

    def rests(self) -> bool:
        """Whether the next round is a plain step, whatever could be drafted; nothing else is asked for it then."""

    def choose(self, offers: Sequence[Offer]) -> Choice:
        """Return what the next round does; ``offers`` are the drafter's, the best source first, or none."""

    def observe(self, finished: Round) -> None:
        """Learn from a finished round."""


class FixedGamma:
    """The same gamma in every round, from the first source."""

    def __init__(self, gamma: int) -> None:
        """Keep ``gamma`` >= 0."""
        self.gamma = gamma

    def begin(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Ignore the text."""

    def read_first(self, offers: Sequence[Offer], prefill_s: float) -> int:
        """All of the prompt: it will be needed, and reading it later would be a pause after the first token."""
        return max((offer.unread for offer in offers), default=0) if self.gamma else 0

    def rests(self) -> bool:
        """Where nothing is ever drafted."""
        return not self.gamma

    def choose(self, offers: Sequence[Offer]) -> Choice:
        """Return the fixed number, with all reading before."""
        return Choice(offers[0].source, self.gamma, offers[0].unread) if self.gamma and offers else PLAIN

    def observe(self, finished: Round) -> None:
        """Ignore the round."""
