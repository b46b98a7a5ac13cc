"""Where prompts come from: the command line, a file, or lines typed by the user."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetero_sd.runtime.text.chat_template import ASSISTANT, Chat, Message
from targets.errors import UserError

_KINDS = ("prompt", "messages", "token_ids")
_MOST_CHARACTERS = 64 << 20  # of a file, which may be a pipe without an end: all prompts are checked before the first


@dataclass(frozen=True)
class Prompt:
    """A text, a conversation, or token ids used as they are; ``where`` says in messages where it came from."""

    given: str | list[int] | Chat
    where: str


def prompt_of_text(text: str, where: str) -> Prompt:
    """Return the prompt of a text.

    Raises:
        UserError: the text holds what UTF-8 cannot, such as bytes that were not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where} is not valid Unicode text: give UTF-8") from None
    return Prompt(text, where)


def ids_of(prompt: Prompt, encode: Callable[[str | Chat], list[int]] | None, vocab: int) -> list[int]:
    """Return the ids of a prompt.

    Args:
        prompt: of any kind.
        encode: of a text or a conversation; None where there is no tokenizer.
        vocab: how many ids the target knows.

    Raises:
        UserError: it has no ids, or one that the target does not know; a text without a tokenizer.
    """
    if isinstance(prompt.given, list):
        ids = prompt.given
    elif encode is None:
        raise UserError(f"{prompt.where} is a text, but the bundle has no tokenizer: give token_ids")
    else:
        ids = encode(prompt.given)
    if not ids:
        raise UserError(f"{prompt.where} is empty: give at least one token")
    if strange := [i for i in ids if not 0 <= i < vocab]:
        raise UserError(f"{prompt.where} has token id {strange[0]}, the target knows 0 to {vocab - 1}")
    return ids


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a file: one text a line, or JSON lines.

    An object has ``prompt``, ``messages`` (and perhaps ``tools``), or ``token_ids``. Of a conversation that ends with
    an answer, as ``/save`` writes it, the last question is answered again.
    Blank lines are skipped. A file named .jsonl, or whose first line starts with ``{``, holds JSON lines.

    Raises:
        UserError: the file cannot be read, is empty or too large, or a line is malformed (the message has its number).
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_MOST_CHARACTERS + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    if len(text) > _MOST_CHARACTERS:
        raise UserError(f"{path} has more than {_MOST_CHARACTERS} characters: split it")
    lines = [(f"{path} line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty: give one prompt a line")
    if path.suffix == ".jsonl" or lines[0][1].lstrip().startswith("{"):
        return [_json_prompt(line, where) for where, line in lines]
    return [prompt_of_text(line.rstrip("\r"), where) for where, line in lines]


def read_lines() -> Iterator[Prompt]:
    """Yield the lines of standard input as prompts, asking with ``> `` where a person types them.

    Ctrl-C there leaves out what was typed, because it may have been meant for the answer that just ended; twice in a
    row it is passed on.

    Raises:
        UserError: it is closed, or a line is not UTF-8.
    """
    if sys.stdin is None:
        raise UserError("standard input is closed: give --prompt or --prompts")
    asking = sys.stdin.isatty()
    if asking:
        with suppress(ImportError):  # a system without it: lines are typed without a history
            import readline  # noqa: F401
    interrupted = False
    while True:
        try:
            line = input("> ") if asking else sys.stdin.readline()
        except KeyboardInterrupt:
            if not asking or interrupted:
                raise
            interrupted = True
            print("\nrun.py: note: Ctrl-C once more, or Ctrl-D, ends the conversation", file=sys.stderr)
            continue
        except EOFError:
            print()
            return
        except UnicodeDecodeError:
            raise UserError("standard input is not UTF-8 text") from None
        if not line and not asking:
            return
        interrupted = False
        if line.strip():
            yield prompt_of_text(line.rstrip("\r\n"), "the input line")


def _json_prompt(line: str, where: str) -> Prompt:
    """Return the prompt of one JSON line."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "unreadable"
        raise UserError(f"{where} is not valid JSON ({reason})") from None
    if not isinstance(value, dict) or sum(kind in value for kind in _KINDS) != 1:
        raise UserError(f"{where} needs an object with one of `prompt`, `messages` and `token_ids`")
    if "prompt" in value:
        if not isinstance(value["prompt"], str):
            raise UserError(f"{where}: `prompt` is not a string")
        return prompt_of_text(value["prompt"], where)
    if "messages" in value:
        return Prompt(chat_of(value, where), where)
    ids = value["token_ids"]
    if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
        raise UserError(f"{where}: `token_ids` is not a list of integers with at least one")
    return Prompt(ids, where)


def given_chat(given: Sequence[Message] | Mapping[str, Any] | Path, tools: Sequence[Mapping[str, Any]] | None) -> Chat:
    """Return the conversation that a caller gives: messages, an object with ``messages``, or a file of one.

    Args:
        given: what ``/save`` writes among them: the object of its line, or its file.
        tools: in place of those of the object or of the file.

    Raises:
        UserError: as `checked_chat` and `read_prompts`; a file with anything else than one conversation.
    """
    where = "chat()"
    if isinstance(given, Path):
        where, prompts = str(given), read_prompts(given)
        found = prompts[0].given if len(prompts) == 1 else None
        if not isinstance(found, Chat):
            raise UserError(f"{where}: chat() takes a file with one conversation, a line of JSON with `messages`")
        given = {"messages": found.messages, "tools": found.tools}
    elif not isinstance(given, Mapping):
        given = {"messages": list(given)}
    elif "messages" not in given:
        raise UserError(f"{where}: the object has no `messages`")
    return chat_of({**given, **({} if tools is None else {"tools": list(tools)})}, where)


def chat_of(value: Mapping[str, Any], where: str) -> Chat:
    """Return the conversation of an object with ``messages`` up to its last question, which is to be answered.

    Raises:
        UserError: as `checked_chat`.
    """
    return checked_chat({**value, "messages": _up_to_the_question(value["messages"])}, where)


def _up_to_the_question(messages: Any) -> Any:
    """The messages without the answers at their end; as they are where there is nothing else."""
    last = len(messages) if isinstance(messages, list) else 0
    while last and isinstance(messages[last - 1], dict) and messages[last - 1].get("role") == ASSISTANT:
        last -= 1
    return messages[:last] if last else messages


def checked_chat(value: Mapping[str, Any], where: str) -> Chat:
    """Return the conversation of an object with ``messages`` and perhaps ``tools``.

    Raises:
        UserError: a message has no role or no content, or the last one is the assistant's; text that UTF-8 cannot hold.
    """
    messages, tools = value["messages"], value.get("tools")
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: `messages` is not a list with at least one message")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f"{where}: message {number} is not an object with a `role`")
        content = message.get("content")
        if not isinstance(content, str | list) and not (content is None and "tool_calls" in message):
            raise UserError(f"{where}: message {number} has no `content` that is a string or a list of parts")
    if messages[-1]["role"] == ASSISTANT:
        raise UserError(f"{where}: the last message is the assistant's: end with the one that is to be answered")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise UserError(f"{where}: `tools` is not a list of objects")
    try:
        json.dumps([messages, tools], ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{where} is not valid Unicode text: give UTF-8") from None
    except (TypeError, ValueError, RecursionError):
        raise UserError(f"{where}: the messages hold what JSON cannot") from None
    return Chat(messages, tools or None)
