"""Where prompts come from: the command line, a file, or lines typed by the user."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets.errors import UserError


@dataclass(frozen=True)
class Prompt:
    """A text, or token ids used as they are; ``where`` says in messages where it came from."""

    given: str | list[int]
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


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a file: one text a line, or JSON lines with ``prompt`` or ``token_ids``.

    Blank lines are skipped. A file named .jsonl, or whose first line starts with ``{``, holds JSON lines.

    Raises:
        UserError: the file cannot be read, is empty, or a line is malformed (the message has its number).
    """
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    lines = [(f"{path} line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty: give one prompt a line")
    if path.suffix == ".jsonl" or lines[0][1].lstrip().startswith("{"):
        return [_json_prompt(line, where) for where, line in lines]
    return [prompt_of_text(line.rstrip("\r"), where) for where, line in lines]


def read_lines() -> Iterator[Prompt]:
    """Yield the lines of standard input as prompts, asking with ``> `` where a person types them."""
    asking = sys.stdin.isatty()
    while True:
        try:
            line = input("> ") if asking else sys.stdin.readline()
        except EOFError:
            print()
            return
        except UnicodeDecodeError:
            raise UserError("standard input is not UTF-8 text") from None
        if not line and not asking:
            return
        if line.strip():
            yield prompt_of_text(line.rstrip("\r\n"), "the input line")


def _json_prompt(line: str, where: str) -> Prompt:
    """Return the prompt of one JSON line."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "unreadable"
        raise UserError(f"{where} is not valid JSON ({reason})") from None
    if not isinstance(value, dict) or ("prompt" in value) == ("token_ids" in value):
        raise UserError(f"{where} needs an object with either `prompt` or `token_ids`")
    if "prompt" in value:
        if not isinstance(value["prompt"], str):
            raise UserError(f"{where}: `prompt` is not a string")
        return prompt_of_text(value["prompt"], where)
    ids = value["token_ids"]
    if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
        raise UserError(f"{where}: `token_ids` is not a list of integers with at least one")
    return Prompt(ids, where)
