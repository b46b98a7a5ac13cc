"""The nearest value of an input at which a verdict is another one: steps outwards, then halvings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from costmodel.question import Variant

_HALVINGS = 10
_TRIES = 4
_BESIDE = 0.02  # of a move


class Judged(NamedTuple):
    """Whether the chosen way holds after a move, and the best other one; None where there is no other."""

    holds: bool
    other: Variant | None


class Verdict(Protocol):
    """Judges a move of an input; with `every` it looks at all overlapped rounds."""

    def __call__(self, move: float, /, every: bool = False) -> Judged:
        """Judge."""


def nearest_flip(verdict: Verdict, steps: Sequence[float]) -> tuple[float | None, Variant | None]:
    """The smallest move, up or down, at which the verdict is another one, and the way that is as good there.

    Both sides of it are looked at once more with every way to run; where one is not as it was said, all is done again
    with what was found there.
    """
    for _ in range(_TRIES):
        move, to = _next_flip(verdict, steps)
        if move is None:
            break
        sides = [verdict(move * (1 + by), True).holds for by in (-_BESIDE, _BESIDE)]
        if sides[0] != sides[1] and sides[0] == verdict(0.0).holds:
            break
    return move, to


def _next_flip(verdict: Verdict, steps: Sequence[float]) -> tuple[float | None, Variant | None]:
    now, before = verdict(0.0).holds, 0.0
    for step in steps:
        for way in (1.0, -1.0):
            if verdict(way * step).holds != now:
                low, high = before, step
                for _ in range(_HALVINGS):
                    middle = (low + high) / 2
                    low, high = (middle, high) if verdict(way * middle).holds == now else (low, middle)
                return way * high, verdict(way * high).other
        before = step
    return None, None
