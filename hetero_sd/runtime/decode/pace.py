"""How often is decided, and how often plain steps are timed: where a step is short, deciding takes time, too.

A decision is some hundred lines of Python, as long as one or two steps of a model of a few million parameters. It was
paid for when so many rounds have passed that it took a small share of them; what it takes is what the loop of a round
with a decision takes. Before that a text asks for none, and a source that was decided for is left as it is: what
drafting may lose is bounded round by round without it (loss_bank.py).
"""

from __future__ import annotations

from hetero_sd.runtime.decode.seen import Seen

DECIDING_SHARE = 0.004  # of the time
_MOST_ROUNDS = 256  # that a decision is waited for
_NEW_LENGTH, _GIVEN_UP = 16, 2  # times as often, at first: it may have been wrong to draft so far, or to end it
_REFRESH_TOKENS, _FIRST_REFRESH = 256, 8  # tokens after which a plain step is timed again, at most; at first


class Pace:
    """Counts rounds.

    Attributes:
        least: rounds from one decision to the next.
        retime: plain steps that are to be timed now.
        since_plain: tokens of drafted rounds since the last plain step.
    """

    def __init__(self) -> None:
        """Nothing was decided."""
        self.least, self.retime, self.since_plain = 0, 0, 0
        self._rounds, self._costs = 0, Seen()
        self._plain_s: float | None = None  # of a decision whose round has not ended

    @property
    def due(self) -> bool:
        """Whether the last decision was paid for."""
        return self._rounds >= self.least

    def decided(self, plain_s: float, in_round: bool) -> None:
        """A decision was made while a plain step takes so long; in the loop of a round, or before any."""
        self._rounds, self._plain_s = 0, plain_s if in_round else None

    def rounds(self, least: int, most: int, period: int | None, drafts: bool) -> int:
        """Rounds until the next decision: ``least`` after a change, else twice the last ``period``, up to ``most``."""
        if period is None:
            return max(least, self.least // (_NEW_LENGTH if drafts else _GIVEN_UP))
        return min(2 * period, max(most, self.least))

    def passed(self, tokens: int, loop_s: float, drafted: bool) -> None:
        """A round ended: its tokens, and what its loop took."""
        self._rounds += 1
        if drafted:
            self.since_plain += tokens
        else:
            self.since_plain, self.retime = 0, max(0, self.retime - 1)
        if self._plain_s is not None:
            self._costs.append(loop_s)
            self.least = min(_MOST_ROUNDS, int(self._costs.median / (DECIDING_SHARE * self._plain_s)))
            self._plain_s = None

    def needs_plain(self, seen: int) -> bool:
        """Whether a plain step is to be timed: after a few tokens, until it was ``seen`` more than a few times."""
        return self.retime > 0 or self.since_plain >= min(_REFRESH_TOKENS, _FIRST_REFRESH << min(8, seen))
