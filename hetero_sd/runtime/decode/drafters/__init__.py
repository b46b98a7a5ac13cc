"""Who drafts: the protocol that speculation depends on, and one file for each way to draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hetero_sd.runtime.decode.sampling import Distribution, Rng
from hetero_sd.runtime.decode.trace import Stopwatch


@dataclass(frozen=True)
class Draft:
    """Drafted tokens, and when sampling the distributions over the target's vocabulary that each was drawn from."""

    tokens: list[int]
    q: list[Distribution]


class Drafter(Protocol):
    """Guesses the tokens that follow a text; a wrong guess costs time and changes no text.

    Attributes:
        lost: why it drafts no more, in one line; None while it drafts.
    """

    lost: str | None

    def room(self, length: int) -> int:
        """Return how many tokens can be drafted after ``length`` tokens of text."""

    def catch_up(self, tokens: Sequence[int]) -> float:
        """Read text that was not read yet, before drafts are asked for; return the seconds it took."""

    def propose(self, tokens: Sequence[int], gamma: int, watch: Stopwatch, rng: Rng) -> Draft:
        """Return at most ``gamma`` tokens that may follow ``tokens``, the whole text so far.

        The time goes to ``watch`` under "draft" and "sampling".
        """

    def keep(self, length: int) -> None:
        """Learn that the text agrees with the drafts up to its first ``length`` tokens, and no further."""
