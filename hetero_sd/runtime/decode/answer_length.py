"""How long an answer is expected to go on, from those before it."""

from __future__ import annotations

_LENGTH = 64.0  # tokens that an answer is expected to have, until one was seen
_LEARNS = 0.3  # share of the last answer in what is expected


class AnswerLength:
    """Tokens of the present answer, and of a typical one."""

    def __init__(self) -> None:
        """No answer was seen."""
        self._typical, self._done, self._most = _LENGTH, 0, 1 << 30

    def begin(self, most: int) -> None:
        """A new answer, of so many tokens at most."""
        if self._done:
            self._typical += _LEARNS * (self._done - self._typical)
        self._done, self._most = 0, most

    def add(self, tokens: int) -> None:
        """The answer went on."""
        self._done += tokens

    @property
    def rest(self) -> float:
        """Tokens that the answer is expected to have yet.

        It is expected to be as long as those before it; one that is longer, to go on for half as long again.
        """
        return min(self._most - self._done, max(self._typical - self._done, 0.5 * self._done))
