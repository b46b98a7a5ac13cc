"""All that a process has read and generated, searched for what followed the last tokens of a text before."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

SHORTEST, _LONGEST = 2, 16  # tokens of a match
_CANDIDATES = 16  # most recent places that are looked at
_FACTOR = 2  # tokens drafted for each token of the match: a longer one is a better reason
_BORDER = -1  # between texts; no token
_MULTIPLIER = 0x9E3779B1  # 2^32 over the golden ratio


@dataclass(frozen=True)
class Match:
    """What followed: `length` tokens at the end of the text stood before, and `tokens` came after them.

    Attributes:
        places: lengths and ends of all matches that were found.
    """

    length: int
    tokens: list[int]
    places: Sequence[tuple[int, int]] = field(default=(), compare=False, repr=False)


class NgramPool:
    """A ring of the last tokens with hash chains through equal pairs of tokens, as LZ77 coders keep them.

    Memory is bounded: 12 bytes a token of the ring, and 8 a chain. Adding a token takes constant time, and a search
    looks at a constant number of places.
    """

    def __init__(self, size: int = 1 << 16) -> None:
        """Hold the last ``size`` tokens, a power of two."""
        self._mask = size - 1
        self._tokens = array("i", bytes(4 * size))
        self._previous = array("q", bytes(8 * size))
        self._heads = array("q", [-1]) * size
        self._end = 0  # tokens added since the start

    def begin(self) -> None:
        """Start another text: no match crosses its border."""
        self.add(_BORDER)

    def add(self, token: int) -> None:
        """Append a token to the text."""
        at, mask = self._end, self._mask
        self._tokens[at & mask] = token
        if at:
            bucket = self._bucket(self._tokens[(at - 1) & mask], token)
            self._previous[at & mask] = self._heads[bucket]
            self._heads[bucket] = at
        self._end = at + 1

    def search(self, most: int) -> Match | None:
        """What may follow the text that was added: at most ``most`` tokens after its longest match.

        Among several places with the longest match, each token is the one that most of them have, the most recent where
        they are equal; the draft ends where fewer than half of the places agree.
        """
        places = self._places()
        if not places:
            return None
        length = max(length for length, _ in places)
        drafted = self._following(places, length, most)
        return Match(length, drafted, places) if drafted else None

    def otherwise(self, match: Match, most: int) -> list[int]:
        """What may follow instead of a match that was just found: the same of the places that begin with another token.

        The longest match counts among these, too; it may be shorter.
        """
        others = [
            (length, place)
            for length, place in match.places
            if self._after(place, 0, ()) not in (match.tokens[0], _BORDER)
        ]
        return self._following(others, max(length for length, _ in others), most) if others else []

    def _following(self, places: Sequence[tuple[int, int]], length: int, most: int) -> list[int]:
        """At most so many tokens after the matches that have this length."""
        drafted: list[int] = []
        alive, voters = [place for of_length, place in places if of_length == length], 0
        while len(drafted) < min(most, _FACTOR * length):
            following = [(self._after(place, len(drafted), drafted), place) for place in alive]
            counts = Counter(token for token, _ in following if token != _BORDER)
            if not counts:
                break
            voters = voters or counts.total()
            token, count = counts.most_common(1)[0]  # the first seen of equals, and the most recent comes first
            if 2 * count < voters:
                break
            drafted.append(token)
            alive = [place for found, place in following if found == token]
        return drafted

    def _places(self) -> list[tuple[int, int]]:
        """The length of each match and where it ends, the most recent first."""
        tokens, mask, end = self._tokens, self._mask, self._end
        if end < SHORTEST + 1:
            return []
        oldest = max(0, end - mask)
        place = self._previous[(end - 1) & mask]  # the chain begins with the text's own end
        places: list[tuple[int, int]] = []
        for _ in range(_CANDIDATES):
            if place < oldest + SHORTEST:
                break
            length = 0
            while (
                length < _LONGEST
                and place - length >= oldest
                and (token := tokens[(place - length) & mask]) == tokens[(end - 1 - length) & mask]
                and token != _BORDER
            ):
                length += 1
            if length >= SHORTEST:
                places.append((length, place))
            place = self._previous[place & mask]
        return places

    def _after(self, place: int, count: int, drafted: Sequence[int]) -> int:
        """The token ``count`` + 1 after a place; beyond the end of the text stand the drafted ones."""
        at = place + 1 + count
        return self._tokens[at & self._mask] if at < self._end else drafted[at - self._end]

    def _bucket(self, first: int, second: int) -> int:
        return ((first * _MULTIPLIER ^ second) * _MULTIPLIER >> 15) & self._mask
