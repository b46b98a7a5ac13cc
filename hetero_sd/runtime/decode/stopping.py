"""When to stop a draft: token by token, from the drafter's own confidence, calibrated while it runs.

After k tokens it goes on where a longer draft of j tokens is worth its time:

    sum over i = k+1 .. j of P(first i accepted) * (time per token)  >  (j - k) * (draft step) + T(j + 1) - T(k + 1)

j = k + 1 is the next token; longer ones count, too, because the compiled widths make T a staircase. The tokens drafted
so far are accepted as often as drafts of such a confidence were (:class:`Calibration`), those to come as often as all.

Telling the confidence takes time, and it may mean nothing. So every round that it limits is compared with a round of
the best fixed length from the same text: of the two, what was drafted is known, and most of what would have been
accepted. At first, and after each rest, drafts keep the fixed length, and only what a limit would have drafted is
compared. Where nothing was gained, or confidences take a noticeable share of a round, drafts have a fixed length for a
while, each time for longer.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from costmodel.speculative import expected_tokens

BORDERS = (0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.97, 0.99)  # between classes of confidences
_EDGES = (0.0, *BORDERS, 1.0)
_PRIOR_WEIGHT = 2.0  # judged tokens that the confidence itself counts for
_CLASS_KEEPS = 1 - 1 / 256  # of a class's memory, with every token that is judged in it
_KEEPS = 1 - 1 / 128  # of what was gained, with every round
_LEARN = 24  # rounds before drafts are limited, which fill the table
_TRY, _REST, _LONGEST_REST = 32, 64, 1024  # rounds with a limit before it is judged; rounds without one
_MOST_TELLING, _PRICED = 0.02, 4  # share of a round that confidences may take; rounds after which that is known
_LEAST_GAIN = 1.005  # in speed, for which drafts are limited


def confidence_class(confidence: float) -> int:
    """The class of a confidence, from 0."""
    return bisect_right(BORDERS, confidence)


def class_edges(index: int) -> tuple[float, float]:
    """The confidences of a class: from, and below."""
    return _EDGES[index], _EDGES[index + 1]


class Calibration:
    """How often drafts of a confidence are accepted; at first as often as the confidence says."""

    def __init__(self) -> None:
        """Nothing was judged yet."""
        middles = [(low + high) / 2 for low, high in map(class_edges, range(len(BORDERS) + 1))]
        self._seen = [[_PRIOR_WEIGHT * middle, _PRIOR_WEIGHT * (1 - middle)] for middle in middles]

    def acceptance(self, confidence: float) -> float:
        """The probability that a draft of that confidence is accepted where those before it were."""
        accepted, rejected = self._seen[confidence_class(confidence)]
        return accepted / (accepted + rejected)

    def observe(self, confidences: Sequence[float], accepted: int) -> None:
        """Learn from a draft, of which so many tokens were accepted; those after the first miss were not judged."""
        for i, confidence in enumerate(confidences[: accepted + 1]):
            seen = self._seen[confidence_class(confidence)]
            seen[:] = [_CLASS_KEEPS * count for count in seen]
            seen[i >= accepted] += 1


@dataclass(frozen=True)
class Prices:
    """What rounds cost and give, as expected before one.

    Attributes:
        following: acceptance of a token that is not drafted yet.
        rounds_s: seconds of rounds with 0, 1, 2 ... drafted tokens, without telling confidences.
        confidence_s: telling one.
    """

    following: float
    rounds_s: Sequence[float]
    confidence_s: float

    def best_fixed(self) -> tuple[int, float]:
        """The best fixed draft length, and its time per token."""
        times = [seconds / expected_tokens(self.following, n) for n, seconds in enumerate(self.rounds_s)]
        best = min(range(len(times)), key=times.__getitem__)
        return best, times[best]


class DraftLimit:
    """Of one round: told the confidence of each drafted token, says whether to draft another."""

    def __init__(
        self, acceptance: Callable[[float], float], prices: Prices, token_s: float, learns: bool = False
    ) -> None:
        """Begin a draft.

        Args:
            acceptance: of a confidence.
            prices: of the round.
            token_s: what a token takes otherwise.
            learns: the draft has the fixed length whatever is said; the table is filled.
        """
        self.prices, self.learns, self._token_s = prices, learns, token_s
        self.confidences: list[float] = []
        self._acceptance, self._all_accepted = acceptance, 1.0
        self._stopped_at: int | None = None
        self._aim = 0  # tokens that the next ones are drafted for

    @property
    def length(self) -> int:
        """Tokens that it drafts by what it was told, also where it learns: to go on is to reach its aim."""
        return self._aim if self._stopped_at is None else self._stopped_at

    def __call__(self, confidence: float) -> bool:
        """Whether to draft another token after one of that confidence."""
        self.confidences.append(confidence)
        if self._stopped_at is None:
            self._aim = self._longer(confidence)
            if not self._aim:
                self._stopped_at = len(self.confidences)
        return self.learns or self._stopped_at is None

    def _longer(self, confidence: float) -> int:
        """The first longer draft that is worth its time; 0: none."""
        self._all_accepted *= self._acceptance(confidence)
        prices, drafted = self.prices, len(self.confidences)
        product, tokens = self._all_accepted, 0.0
        for longer in range(drafted + 1, len(prices.rounds_s)):
            product *= prices.following
            tokens += product
            takes_s = prices.rounds_s[longer] - prices.rounds_s[drafted] + (longer - drafted) * prices.confidence_s
            if tokens * self._token_s > takes_s:
                return longer
        return 0


class Stopping:
    """Whether drafts of one source are limited, by what that gained."""

    def __init__(self) -> None:
        """Learn first."""
        self.calibration = Calibration()
        self._learn = _LEARN
        self._on, self._left, self._rest = True, _TRY, _REST
        self._priced = _PRICED  # rounds until it is known what confidences take
        self._limited, self._fixed = _Speed(), _Speed()

    def limit(self, prices: Callable[[], Prices]) -> DraftLimit | None:
        """The limit of the next round that drafts; None where it drafts the fixed length."""
        if not self._on:
            self._left -= 1
            if self._left > 0:
                return None
            self._on, self._left, self._priced, self._learn = True, _TRY, _PRICED, _LEARN
            self._limited, self._fixed = _Speed(), _Speed()
        priced = prices()
        _, token_s = priced.best_fixed()
        if self._limited.rounds >= _TRY:
            token_s = min(token_s, self._limited.token_s)
        return DraftLimit(self.calibration.acceptance, priced, token_s, learns=self._learn > 0)

    def observe(self, limit: DraftLimit, accepted: int) -> None:
        """Learn from a round with a limit."""
        prices, drafted = limit.prices, len(limit.confidences)
        self.calibration.observe(limit.confidences, accepted)
        self._priced -= 1
        telling_s = drafted * prices.confidence_s
        if self._priced <= 0 and telling_s > _MOST_TELLING * prices.rounds_s[drafted]:
            self._rest_now()
            return
        length = limit.length if limit.learns else drafted
        limited_s = prices.rounds_s[length] + length * prices.confidence_s
        self._limited.add(_tokens(prices, length, drafted, accepted), limited_s)
        fixed, _ = prices.best_fixed()
        self._fixed.add(_tokens(prices, fixed, drafted, accepted), prices.rounds_s[fixed])
        if limit.learns:
            self._learn -= 1
        else:
            self._left -= 1
        if self._learn > 0 or (self._left > 0 and not limit.learns):
            return
        if self._fixed.token_s <= _LEAST_GAIN * self._limited.token_s:
            self._rest_now()
        elif limit.learns:
            self._limited, self._fixed = _Speed(), _Speed()
        else:
            self._left, self._rest = _TRY, _REST

    def _rest_now(self) -> None:
        self._on, self._left, self._rest = False, self._rest, min(2 * self._rest, _LONGEST_REST)


def _tokens(prices: Prices, length: int, drafted: int, accepted: int) -> float:
    """What a round with a draft of another length had given: exact, but where all was accepted and it is longer."""
    tokens = min(accepted, length) + 1.0
    if accepted == drafted < length:
        tokens += expected_tokens(prices.following, length - drafted) - 1.0
    return tokens


class _Speed:
    """The time per token of the last rounds; older ones count less."""

    def __init__(self) -> None:
        self.rounds, self._tokens, self._seconds = 0, 0.0, 0.0

    def add(self, tokens: float, seconds: float) -> None:
        self.rounds += 1
        self._tokens, self._seconds = _KEEPS * self._tokens + tokens, _KEEPS * self._seconds + seconds

    @property
    def token_s(self) -> float:
        return self._seconds / self._tokens
