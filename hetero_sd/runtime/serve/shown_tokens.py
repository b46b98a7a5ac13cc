"""The tokens of a text as clients are told of them: their texts, bytes and logarithms of probabilities."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hetero_sd.runtime.answer import Piece
from hetero_sd.runtime.decode.logprobs import Logprobs, TokenLogprob
from hetero_sd.runtime.text.stream import REPLACEMENT

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class ShownToken:
    """A token.

    Attributes:
        text: that it adds to the text before; U+FFFD for a part of a character.
        data: its bytes in UTF-8; None where it is a part of a character, and the tokenizer does not say which.
        logprob: natural logarithm of its probability.
        top: the most probable tokens at its place, which have none.
    """

    text: str
    data: bytes | None
    logprob: float
    top: tuple[ShownToken, ...] = ()


class TokenTexts:
    """Texts and bytes of single tokens."""

    def __init__(self, decode: Callable[[Sequence[int]], str], raw: Callable[[int], str | None]) -> None:
        """By a tokenizer: the text of ids, and the name of an id in its vocabulary."""
        self._decode, self._raw = decode, raw
        self._byte_of = _byte_alphabet()

    def shown(self, one: TokenLogprob, before: Sequence[int]) -> ShownToken:
        """A token that follows others."""
        start = self._decode(before)
        top = tuple(ShownToken(*self._text(token, before, start), logprob) for token, logprob in one.top)
        return ShownToken(*self._text(one.token, before, start), one.logprob, top)

    def _text(self, token: int, before: Sequence[int], start: str) -> tuple[str, bytes | None]:
        whole = self._decode([*before, token])
        text = whole[len(start) :] if whole.startswith(start) else ""
        if not text or REPLACEMENT in text:  # a part of a character
            text = self._decode([token])
        return text, text.encode() if REPLACEMENT not in text else self._bytes(token)

    def _bytes(self, token: int) -> bytes | None:
        """Of a token that is no whole characters, by its name: <0xE2>, or bytes as GPT-2's alphabet writes them."""
        name = self._raw(token) or ""
        if found := _BYTE.fullmatch(name):
            return bytes([int(found[1], 16)])
        data = [self._byte_of.get(symbol) for symbol in name]
        return bytes(b for b in data if b is not None) if name and None not in data else None


class ShownTokens:
    """The tokens of an answer's pieces, in order."""

    def __init__(self, texts: TokenTexts, logprobs: Logprobs) -> None:
        """Of an answer of which nothing was made yet."""
        self._texts, self._logprobs = texts, logprobs
        self._before: list[int] = []  # the token before, if any
        self._made = self._told = self._told_bytes = self._text_bytes = 0

    def of(self, piece: Piece) -> tuple[ShownToken, ...]:
        """Those that a piece's text needs; one whose text is held back comes later, or never where it is not shown."""
        self._made += len(piece.token_ids)
        self._text_bytes += len(piece.text.encode())
        found: list[ShownToken] = []
        for one in self._logprobs.of[self._told : self._made]:
            if self._told_bytes >= self._text_bytes:
                break
            token = self._texts.shown(one, self._before)
            self._told_bytes += len(token.text.encode() if token.data is None else token.data)
            found.append(token)
            self._before = [one.token]
        self._told += len(found)
        return tuple(found)


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies: themselves where they can be seen."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {**{chr(byte): byte for byte in seen}, **{chr(256 + i): byte for i, byte in enumerate(hidden)}}
