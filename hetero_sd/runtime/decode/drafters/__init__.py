"""Who drafts: the protocol that speculation depends on, and one file for each way to draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hetero_sd.runtime.decode.sampling import Distribution, Rng
from hetero_sd.runtime.decode.trace import Stopwatch

MODEL = "model"  # drafts of a draft model; other sources are named in their own files
GoOn = Callable[[float], bool]  # told the confidence of each drafted token in turn: whether to draft another


@dataclass(frozen=True)
class Offer:
    """What a drafter could draft from after a text.

    Attributes:
        source: its name; drafts of one source are accepted about equally often, those of two need not be.
        most: tokens that it can draft, at least 1.
        unread: tokens of the text that it must read first.
        confident: it can tell how confident it is of each token that it drafts.
    """

    source: str
    most: int
    unread: int = 0
    confident: bool = False


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

    def offers(self, tokens: Sequence[int], watch: Stopwatch) -> Sequence[Offer]:
        """Return what it can draft from after ``tokens``, the whole text so far, the best source first; none is none.

        What takes time goes to ``watch`` under "draft".
        """

    def read(self, tokens: Sequence[int], most: int, skip: int, watch: Stopwatch) -> int:
        """Read at most ``most`` tokens of the text that were not read yet; return how many.

        ``skip`` tokens before them are left out for good: drafts may be worse for it, the text is the same. The time
        goes to ``watch`` under "catch_up".
        """

    def propose(
        self, tokens: Sequence[int], source: str, gamma: int, watch: Stopwatch, rng: Rng, go_on: GoOn | None = None
    ) -> Draft:
        """Return at most ``gamma`` >= 1 tokens that may follow ``tokens``, from a source that was offered for it.

        All of the text that the source needs was read. ``go_on`` is given only where the offer was confident: it is
        told the confidence of every token, and ends the draft with it. The time goes to ``watch`` under "draft",
        "sampling" and, for confidences, "confidence".
        """

    def keep(self, length: int) -> None:
        """Learn that the text agrees with the drafts up to its first ``length`` tokens, and no further."""
