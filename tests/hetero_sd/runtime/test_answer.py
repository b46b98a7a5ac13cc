"""An answer that ends within a character: what a limit or a person cut is not shown, what the model ended is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hetero_sd.runtime.answer import Answer, RunFacts
from hetero_sd.runtime.decode.trace import Trace


def answer_of(decode: Any, ids: list[int], reason: str, stops: tuple[str, ...] = ()) -> Answer:
    trace = Trace()

    def tokens() -> Iterator[int]:
        for i, token in enumerate(ids, 1):
            trace.token_ids.append(token)
            trace.finish_reason = reason if i == len(ids) else None
            yield token

    return Answer([], tokens(), trace, decode, stops, RunFacts(""))


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@pytest.mark.parametrize("reason", ["length", "context"])
@pytest.mark.parametrize("missing", [1, 2, 3])
def test_an_answer_that_a_limit_ends_has_whole_characters(
    tokenizers_by_kind: Any, kind: str, reason: str, missing: int
) -> None:
    tokenizer = tokenizers_by_kind[kind]
    ids = tokenizer.encode("a b😀", add_special_tokens=False).ids
    answer = answer_of(tokenizer.decode, ids[:-missing], reason)
    pieces = list(answer)
    assert "".join(map(str, pieces)) == answer.text == "a b"
    assert [token for piece in pieces for token in piece.token_ids] == answer.token_ids == ids[:-missing]
    assert answer_of(tokenizer.decode, ids, reason).read() == "a b😀"


def test_what_the_model_ended_is_as_it_is(tokenizers_by_kind: Any) -> None:
    tokenizer = tokenizers_by_kind["byte level"]
    ids = tokenizer.encode("ab😀", add_special_tokens=False).ids[:-1]
    assert answer_of(tokenizer.decode, ids, "eos").read() == tokenizer.decode(ids) == "ab\ufffd"


def test_an_answer_that_a_person_ends_has_whole_characters(tokenizers_by_kind: Any) -> None:
    tokenizer = tokenizers_by_kind["byte level"]
    answer = answer_of(tokenizer.decode, tokenizer.encode("ab😀", add_special_tokens=False).ids, "eos")
    answer.interrupted = lambda: len(answer.token_ids) == 5
    assert answer.read() == "ab"
    assert len(answer.token_ids) == 5
