"""Token ids to text while they come: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
_MAX_PENDING = (
    8  # a UTF-8 character has at most 4 bytes, so 4 tokens; more pending ones are not an unfinished character
)


class Detokeniser:
    """Turns ids into pieces of text whose concatenation is the text of all ids.

    A token may hold part of a character, and its text may depend on its neighbours (a leading space). So each step
    decodes a short window: the tokens of the last piece, for context, and those since. Its length is bounded, so a
    step costs the same at any length of the text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Use ``decode``, which gives the text of a list of ids."""
        self._decode = decode
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []

    def feed(self, token: int) -> str:
        """Return the text that ``token`` completes, possibly empty."""
        self._pending.append(token)
        text = self._decode(self._context + self._pending)
        unfinished = text.endswith(REPLACEMENT) or len(text) <= len(self._context_text)
        if unfinished and len(self._pending) < _MAX_PENDING:
            return ""
        return self._release(text)

    def flush(self, cut: bool = False) -> str:
        """Return what is left at the end.

        Of a text that is ``cut``, and would have gone on, an unfinished character is left out; else it is what the
        model wrote, and shows as U+FFFD.
        """
        rest = self._release(self._decode(self._context + self._pending))
        return rest.rstrip(REPLACEMENT) if cut else rest

    def _release(self, text: str) -> str:
        piece = text[len(self._context_text) :]
        if piece:  # tokens without text give no context
            self._context = self._pending
            self._context_text = self._decode(self._context)
        self._pending = []
        return piece


class StopScanner:
    """Passes text on until a stop string appears, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for ``stops``, none of them empty."""
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def feed(self, piece: str) -> str:
        """Return the text that can be shown; ``hit`` tells that a stop string ended it."""
        if self.hit:
            return ""
        text = self._held + piece
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.hit = True
            self._held = ""
            return text[: min(found)[1]]  # the first one to be complete, however the text was cut into pieces
        cut = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """Return what was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that is a proper beginning of ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
