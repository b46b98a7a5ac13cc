"""Turns with history: what the model is shown, what is read, and what is dropped when the context is full."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hetero_sd.runtime.conversation import Conversation
from hetero_sd.runtime.session import Session
from targets.errors import UserError


def shown(session: Session, answer: Any) -> str:
    assert session.text is not None
    return session.text.decode(answer.prompt_ids)


def turn(conversation: Conversation, question: str) -> Any:
    answer = conversation.ask(question)
    answer.read()
    conversation.keep(answer)
    return answer


def test_the_model_is_shown_all_turns_and_the_system_message(letters: Any) -> None:
    made = letters(system="be brief")
    conversation = Conversation(made)
    first = turn(conversation, "hi")
    assert shown(made, first) == "s:be brief\nu:hi\na:"
    second = turn(conversation, "why?")
    assert shown(made, second) == f"s:be brief\nu:hi\na:{first.text}\nu:why?\na:"
    conversation.reset()
    assert shown(made, turn(conversation, "hi")) == "s:be brief\nu:hi\na:"


@pytest.mark.parametrize("drafts", [False, True])
def test_a_turn_reads_only_what_is_new_and_says_the_same_as_a_fresh_session(letters: Any, drafts: bool) -> None:
    made = letters(drafts=drafts)
    conversation, asked = Conversation(made), []
    for number in range(4):
        answer = turn(conversation, f"question {number}")
        asked.append((answer.prompt_ids, answer.text))
        if number:
            new = len(answer.prompt_ids) - answer.trace.kept_tokens
            # of the turn before the last token of the answer, which was not fed; this turn's question and its frame
            assert new == 1 + len(f"\nu:question {number}\na:")
    for ids, text in asked:
        assert letters().answer(ids).read() == text
    other = letters().answer([*asked[3][0][:-1], 5]).read()  # the negative control
    assert other != asked[3][1]


@pytest.mark.parametrize(
    ("when_full", "kept", "dropped"), [("oldest", ["3", "4"], 3), ("all", ["4"], 4), ("stop", None, None)]
)
def test_what_is_dropped_when_the_context_is_full(
    letters: Any, when_full: str, kept: list[str] | None, dropped: int | None
) -> None:
    """A turn has 11 tokens, a question and the frame 6: the fifth does not fit 48 with room for 4 more."""
    made = letters(context=48)
    conversation = Conversation(made, when_full)
    for number in range(4):
        turn(conversation, str(number))
        assert conversation.dropped == 0
    before = list(conversation.messages)
    if kept is None:
        with pytest.raises(UserError, match=r"the context of 48 tokens is full: /reset.*--when-full oldest"):
            conversation.ask("4")
        assert conversation.messages == before
        conversation.reset()
        kept = ["4"]
    turn(conversation, "4")
    assert conversation.dropped == (dropped or 0)
    assert [m["content"] for m in conversation.messages if m["role"] == "user"] == kept


def test_a_question_that_is_too_long_changes_nothing(letters: Any) -> None:
    conversation = Conversation(letters(context=40))
    turn(conversation, "hi")
    before = list(conversation.messages)
    with pytest.raises(UserError, match="the question has 105 tokens, the target's context is 40"):
        conversation.ask("x" * 100)
    assert conversation.messages == before


def test_an_answer_that_was_not_generated_to_its_end_is_kept_as_far_as_it_came(letters: Any) -> None:
    conversation = Conversation(letters())
    answer = conversation.ask("hi")
    piece = next(answer)
    conversation.keep(answer)
    assert list(answer) == []
    assert conversation.messages[-1] == {"role": "assistant", "content": piece.text}


def test_a_saved_conversation_can_be_gone_on_with(letters: Any, tmp_path: Any) -> None:
    conversation = Conversation(letters(system="s"))
    answer = turn(conversation, "hällo")
    conversation.save(tmp_path / "c.jsonl")
    assert json.loads((tmp_path / "c.jsonl").read_text("utf-8")) == {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "hällo"},
            {"role": "assistant", "content": answer.text},
        ]
    }
    with pytest.raises(UserError, match="there is no folder"):
        conversation.save(tmp_path / "no" / "c.jsonl")
