"""The chat template is tried when a bundle is compiled, so that the board has no surprise."""

from __future__ import annotations

from pathlib import Path

from hetero_sd.runtime.text.chat_template import ASSISTANT, SYSTEM, USER, Chat, Message
from hetero_sd.runtime.text.tokenizer import text_of_folder
from targets.errors import UserError

_QUESTION = {"role": USER, "content": "a"}
_TURNS: list[Message] = [_QUESTION, {"role": ASSISTANT, "content": "b"}, {"role": USER, "content": "c"}]
_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
_TRIALS = (
    ("a question", "run.py needs --no-chat-template", Chat([_QUESTION])),
    ("a second turn", "only first questions can be answered", Chat(_TURNS)),
    ("a system message", "run.py --system cannot be used", Chat([{"role": SYSTEM, "content": "s"}, _QUESTION])),
    ("tools", "prompts with tools cannot be answered", Chat([_QUESTION], [_TOOL])),
)


def template_notes(folder: Path) -> tuple[str, ...]:
    """What the chat template beside a tokenizer refuses, in sentences for the user; none where there is no template.

    Raises:
        UserError: a file of the tokenizer is malformed.
    """
    text = text_of_folder(folder)
    notes = []
    for what, so, chat in _TRIALS if text.has_template else ():
        try:
            text.encode_prompt(chat)
        except UserError as error:
            reason = str(error).removesuffix(": give --no-chat-template")
            notes.append(f"chat template: {what} was tried: {reason}; {so}")
            if chat.messages == [_QUESTION] and chat.tools is None:
                break  # all others fail, too
    return tuple(notes)
