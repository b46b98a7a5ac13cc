"""The Python interface: answers as iterators, their options, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetero_sd.runtime.answer import Piece
from hetero_sd.runtime.decode.generate import Request
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.model.protocol import Models
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text.tokenizer import Text
from targets.errors import UserError

SAID = "hello wörld 😀"


@pytest.fixture
def text(tmp_path: Any, tokenizers_by_kind: Any) -> Text:
    tokenizers_by_kind["byte level"].save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}{{ tools | length if tools else '' }}"
    )
    return Text(lambda name: tmp_path / name if (tmp_path / name).exists() else None)


@pytest.fixture
def session(text: Text, table_model: Any) -> Session:
    """Says SAID and ends, whatever it is asked."""
    script = [*text.encode(SAID), text._tokenizer.token_to_id("<|end|>")]

    class Scripted(table_model):  # type: ignore[misc]
        def _state(self, length: int) -> int:
            said, state = 0, 0
            for token in self.rows[:length]:
                said = said + 1 if token == script[said % len(script)] else 0
                state = said
            return state % len(script)

    table = 5.0 * np.eye(text.vocab)[script]
    models = Models(Scripted(table, 64, "target"), Scripted(np.roll(table, 1, 0), 64, "draft"))
    return Session(models, text, Request(eos_ids=frozenset(script[-1:])), policy=FixedGamma(2))


def test_pieces_are_whole_characters_with_their_tokens(session: Session, text: Text) -> None:
    answer = session.generate("?")
    pieces = list(answer)
    assert "".join(piece.text for piece in pieces) == answer.text == SAID
    assert [token for piece in pieces for token in piece.token_ids] == answer.token_ids
    assert [text.decode(piece.token_ids) for piece in pieces] == [piece.text for piece in pieces]
    assert [piece.text for piece in pieces[-2:]] == ["😀", ""]  # four tokens, then the end of text
    assert (answer.stop_reason, len(pieces[-2].token_ids), str(pieces[0])) == ("eos", 4, pieces[0].text)
    stats = answer.stats
    assert (stats["mode"], stats["new_tokens"], stats["seed"]) == ("speculative", len(answer.token_ids), None)
    assert {row["term"] for row in stats["predicted_vs_measured"]} >= {"speed", "time to first token"}


def test_options_hold_for_one_answer(session: Session) -> None:
    short = session.generate("?", max_new_tokens=1)
    assert (short.read(), short.stop_reason) == ("hello", "length")
    stopped = session.generate("?", stop=["rld"])
    assert (stopped.read(), stopped.stop_reason) == ("hello wö", "stop")
    assert session.generate("?").read() == SAID
    sampled = [session.generate("?", temperature=9.0, seed=seed, max_new_tokens=8).read() for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    other = session.generate("?", temperature=9.0)
    other.close()
    assert other.facts.seed != session.generate("?", temperature=9.0).facts.seed


def test_ids_go_to_the_model_as_they_are(session: Session, text: Text) -> None:
    assert session.generate([5, 6]).prompt_ids == [5, 6]
    assert session.generate("?").prompt_ids == text.encode("<|user|>?", special=False)
    session.template = False
    assert session.generate("?").prompt_ids == text.encode("?")


def test_chats_with_system_message_and_tools(session: Session, text: Text) -> None:
    ask = [{"role": "user", "content": "a"}]
    assert session.chat(ask).read() == SAID
    assert text.decode(session.chat(ask, tools=[{"name": "f"}]).prompt_ids) == "a1"
    session.system = "s"
    assert text.decode(session.chat(ask).prompt_ids) == "sa"
    assert text.decode(session.chat([{"role": "system", "content": "own"}, *ask]).prompt_ids) == "owna"
    assert text.decode(session.generate("a").prompt_ids) == "sa"


def test_the_next_answer_ends_the_one_before(session: Session) -> None:
    first = session.generate("?")
    next(first)
    assert session.generate("?").read() == SAID
    assert (list(first), first.text, first.stop_reason) == ([], "hello", None)


def test_without_a_tokenizer_every_token_is_a_piece(session: Session) -> None:
    plain = Session(session.models, None, Request(3))
    answer = plain.generate([1])
    assert list(answer) == [Piece("", (token,)) for token in answer.token_ids]
    assert len(answer.token_ids) == 3
    with pytest.raises(UserError, match="has no tokenizer"):
        plain.generate("?")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"seed": -1}, "seed must not be negative"),
        ({"stop": "x"}, "stop is one text"),
        ({"stop": [""]}, "stop has an empty text"),
    ],
)
def test_wrong_options_are_one_line(session: Session, options: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        session.generate("?", **options)


def test_an_option_that_does_not_exist(session: Session) -> None:
    with pytest.raises(TypeError, match="unknown option 'max_tokens': there are max_new_tokens"):
        session.generate("?", max_tokens=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda s: s.generate([]), "the prompt is empty"),
        (lambda s: s.generate([9999]), "the prompt has token id 9999"),
        (lambda s: s.generate("x" * 99), "has 100 tokens, the target's context is 64"),
        (lambda s: s.generate("\ud800"), "the prompt is not valid Unicode"),
        (lambda s: s.chat([]), r"chat\(\): `messages` is not a list with at least one"),
        (lambda s: s.chat([{"content": "x"}]), "message 1 is not an object with a `role`"),
        (lambda s: s.chat([{"role": "assistant", "content": "x"}]), "the last message is the assistant's"),
        (lambda s: s.chat({"prompt": "x"}), r"chat\(\): the object has no `messages`"),
        (lambda s: s.chat(Path(__file__)), r"test_session\.py: chat\(\) takes a file with one conversation"),
        (lambda s: s.chat(Path("none.jsonl")), "cannot read none.jsonl"),
    ],
)
def test_wrong_prompts_are_one_line(session: Session, call: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        call(session)
