"""Texts and bytes of tokens whose probabilities a client asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hetero_sd.runtime.answer import Pieces
from hetero_sd.runtime.decode.logprobs import Logprobs
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.serve.shown_tokens import ShownToken, ShownTokens, TokenTexts


def shown(tokenizer: Any, ids: list[int], stops: tuple[str, ...] = (), reason: str = "eos") -> Any:
    """The text and the tokens of an answer's pieces."""
    logprobs, trace = Logprobs(1), Trace()
    pieces = Pieces(tokenizer.decode, stops, trace)
    tokens = ShownTokens(TokenTexts(tokenizer.decode, tokenizer.id_to_token), logprobs)
    text, found = "", list[ShownToken]()
    for token in ids:
        logprobs.add(np.zeros((1, 400)), [token])
        piece = pieces.feed(token)
        if piece is not None:
            text, found = text + piece.text, [*found, *tokens.of(piece)]
        if pieces.stopped:
            return text, found
    trace.finish_reason = reason
    if (rest := pieces.flush()) is not None:
        text, found = text + rest.text, [*found, *tokens.of(rest)]
    return text, found


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_the_bytes_of_the_tokens_are_those_of_the_text(tokenizers_by_kind: Any, kind: str) -> None:
    tokenizer = tokenizers_by_kind[kind]
    ids = tokenizer.encode("a b aé→ b", add_special_tokens=False).ids
    text, found = shown(tokenizer, ids)
    assert b"".join(token.data for token in found).decode() == text == "a b aé→ b"
    assert any("\ufffd" in token.text for token in found)  # the arrow is three tokens
    assert len(found) == len(ids)


def test_tokens_of_a_stop_text_and_the_end_of_text_are_not_told(tokenizers_by_kind: Any) -> None:
    tokenizer = tokenizers_by_kind["byte level"]
    end = tokenizer.token_to_id("<|end|>")
    ids = [*tokenizer.encode("abcdef", add_special_tokens=False).ids, end]
    text, found = shown(tokenizer, ids)
    assert (text, [token.text for token in found]) == ("abcdef", list("abcdef"))
    text, found = shown(tokenizer, ids, stops=("cd",))
    assert (text, [token.text for token in found]) == ("ab", ["a", "b"])
    ids = tokenizer.encode("hhhello world", add_special_tokens=False).ids
    text, found = shown(tokenizer, ids, stops=("hhx", "o world!"))  # held back, and then not
    assert "".join(token.text for token in found) == text == "hhhello world"
    assert len(found) == len(ids)


def test_tokens_of_half_a_character_are_not_told(tokenizers_by_kind: Any) -> None:
    tokenizer = tokenizers_by_kind["byte level"]
    ids = tokenizer.encode("a😀", add_special_tokens=False).ids
    text, found = shown(tokenizer, ids[:-1], reason="length")
    assert (text, [token.text for token in found]) == ("a", ["a"])
    text, found = shown(tokenizer, ids, reason="length")
    assert b"".join(token.data for token in found).decode() == text == "a😀"


def test_a_name_that_says_nothing_of_bytes(tokenizers_by_kind: Any) -> None:
    texts = TokenTexts(tokenizers_by_kind["byte fallback"].decode, lambda token: None)
    logprobs = Logprobs(0)
    token = tokenizers_by_kind["byte fallback"].token_to_id("<0xE2>")
    logprobs.add(np.zeros((1, 400)), [token])
    assert texts.shown(logprobs.of[0], [4]).data is None
