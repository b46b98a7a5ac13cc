"""What a person types: turns, commands, mistakes and Ctrl-C; and lines that are piped in."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hetero_sd.runtime.answer import Answer
from hetero_sd.runtime.interactive import COMMANDS, Interactive
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text.prompts import Prompt, read_prompts
from targets.errors import UserError


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Answer]]:
    """Runs lines on a session, piped in or typed, and returns the answers."""

    def run(session: Session, *lines: str, typed: bool = False, during: Any = None, **more: Any) -> list[Answer]:
        answers = []

        def show(prompt: Prompt, answer: Answer) -> None:
            answers.append(answer)
            for _ in answer:
                if during is not None:
                    during(prompt.given)

        stdin: Any = io.StringIO("".join(f"{line}\n" for line in lines))
        waiting: Iterator[str] = iter(lines)
        if typed:
            stdin.isatty = lambda: True

            def ask(_: str) -> str:
                if (line := next(waiting, None)) is None:
                    raise EOFError
                return line

            monkeypatch.setattr("builtins.input", ask)
        monkeypatch.setattr("sys.stdin", stdin)
        Interactive(session, more.pop("when_full", "oldest"), more, show).run()
        return answers

    return run


def shown(session: Session, answer: Answer) -> str:
    assert session.text is not None
    return session.text.decode(answer.prompt_ids)


@pytest.mark.parametrize("typed", [True, False])
def test_lines_are_turns_until_a_reset(letters: Any, say: Any, capsys: Any, typed: bool) -> None:
    session = letters()
    first, second, third = say(session, "hi", "why?", "/reset", "so", typed=typed)
    assert shown(session, second) == f"u:hi\na:{first.text}\nu:why?\na:"
    assert second.trace.kept_tokens == len(first.prompt_ids) + 3  # its last token was not fed
    assert shown(session, third) == "u:so\na:"
    assert "run.py: note: the conversation was forgotten\n" in capsys.readouterr().err


def test_without_a_chat_template_a_line_is_a_prompt(letters: Any, say: Any, capsys: Any) -> None:
    for session in (letters(chats=False), letters(template=False)):
        assert [shown(session, answer) for answer in say(session, "hi", " /reset", "hi")] == ["hi", " /reset", "hi"]
        say(session, "/reset", typed=True)
        assert "/reset is for conversations, and there is no chat template" in capsys.readouterr().err


def test_commands(letters: Any, say: Any, capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "a b.jsonl"
    say(letters(), "/stats", "hi", "/stats", f"/save {file}", "/save", "/help", "/sate", "/tmp/x is a path", typed=True)
    say(letters(), "/Reset", "/sav x", "/etc is a folder", "/quit", "hi", typed=True)
    lines = capsys.readouterr().err
    assert "error: nothing was answered yet" in lines
    assert "7 prompt tokens, 4 new tokens" in lines
    assert f"run.py: note: {file} holds the conversation" in lines
    assert "error: /save needs the name of a file" in lines
    assert COMMANDS in lines
    assert "there is no command /sate: did you mean /save? /help lists them" in lines
    assert "there is no command /Reset: did you mean /reset? /help lists them" in lines
    assert "there is no command /sav: did you mean /save? /help lists them" in lines
    assert "command /etc" not in lines
    saved = json.loads(file.read_text())["messages"]
    assert [m["role"] for m in saved] == ["user", "assistant"]


def test_a_saved_conversation_is_a_prompt(letters: Any, say: Any, tmp_path: Path) -> None:
    """--prompts answers its last question again: the same tokens before it, the same answer."""
    session, file = letters(system="s"), tmp_path / "c.jsonl"
    first, second = say(session, "hi", "why?", f"/save {file}")
    (prompt,) = read_prompts(file)
    ids = letters(system="another").encode(prompt)
    assert ids == second.prompt_ids != first.prompt_ids
    again = session.answer(ids)
    assert "".join(piece.text for piece in again) == second.text != first.text


def test_a_saved_conversation_is_one_of_the_python_interface(letters: Any, say: Any, tmp_path: Path) -> None:
    """As file, object or messages chat() answers its last question again; with another question after it, that one."""
    session, file = letters(system="s"), tmp_path / "c.jsonl"
    first, second = say(session, "hi", "why?", f"/save {file}")
    saved = json.loads(file.read_text())
    for given in (file, saved, saved["messages"]):
        again = letters(system="another").chat(given)
        assert again.prompt_ids == second.prompt_ids != first.prompt_ids
        assert again.read() == second.text != first.text
    more = {**saved, "messages": [*saved["messages"], {"role": "user", "content": "so?"}]}
    assert shown(session, session.chat(more)).endswith(f"a:{second.text}\nu:so?\na:")


def test_a_mistake_ends_only_what_is_piped_in(letters: Any, say: Any, capsys: Any) -> None:
    session = letters(context=40)
    assert len(say(session, "x" * 99, "hi", typed=True)) == 1
    assert "run.py: error: the question has 104 tokens, the target's context is 40" in capsys.readouterr().err
    with pytest.raises(UserError, match="the question has 104 tokens"):
        say(session, "x" * 99, "hi")


def test_dropped_turns_are_said(letters: Any, say: Any, capsys: Any) -> None:
    say(letters(context=48), *"01234")
    said = "run.py: note: the context of 48 tokens is full: "
    assert capsys.readouterr().err == f"{said}the 3 oldest turns were dropped\n"
    say(letters(context=48), *"01234", when_full="all")
    assert capsys.readouterr().err == f"{said}all turns were dropped\n"
    assert len(say(letters(context=48), *"01234", when_full="stop", typed=True)) == 4
    assert "error: the context of 48 tokens is full: /reset forgets" in capsys.readouterr().err


def test_quit_ends_a_conversation(letters: Any, say: Any) -> None:
    for typed in (True, False):
        assert len(say(letters(), "hi", "/quit", "so", typed=typed)) == 1
    assert len(say(letters(), "hi", " /quit", "so", typed=True)) == 3


def test_the_person_hears_why_an_answer_ends_in_the_middle(letters: Any, say: Any, capsys: Any) -> None:
    say(letters(), "hi", typed=True)
    said = "run.py: note: the answer ends after 4 tokens; --max-new-tokens N allows more\n"
    assert said in capsys.readouterr().err
    say(letters(), "hi")  # piped in
    assert capsys.readouterr().err == ""


def test_ctrl_c_that_comes_after_the_answer_ends_nothing(letters: Any, say: Any, monkeypatch: Any) -> None:
    """Pressed for an answer that ends just then: the conversation goes on; twice in a row at the prompt it ends."""
    session, typed = letters(), iter(["hi", KeyboardInterrupt, "so", KeyboardInterrupt, KeyboardInterrupt, "never"])

    def ask(_: str) -> str:
        given = next(typed)
        if not isinstance(given, str):
            raise given
        return given

    stdin: Any = io.StringIO()
    stdin.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr("builtins.input", ask)
    answers: list[Answer] = []

    def show(prompt: Prompt, answer: Answer) -> None:
        answers.append(answer)
        answer.read()
        if prompt.given == "hi":
            raise KeyboardInterrupt  # after its last token

    with pytest.raises(KeyboardInterrupt):
        Interactive(session, "oldest", {}, show).run()
    first, second = answers
    assert first.stop_reason == "length"
    assert shown(session, second) == f"u:hi\na:{first.text}\nu:so\na:"
    assert next(typed) == "never"


def test_ctrl_c_ends_the_answer_and_what_came_of_it_is_kept(letters: Any, say: Any) -> None:
    def interrupt(line: str) -> None:
        if line == "hi":
            raise KeyboardInterrupt

    session = letters()
    first, second = say(session, "hi", "so", typed=True, during=interrupt)
    assert len(first.text) == 1
    assert shown(session, second) == f"u:hi\na:{first.text}\nu:so\na:"
    with pytest.raises(KeyboardInterrupt):  # piped in: it ends the run
        say(session, "hi", "so", during=interrupt)
