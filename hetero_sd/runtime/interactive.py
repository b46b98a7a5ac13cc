"""What a person types: turns of a conversation, or prompts where there is no chat template, and commands."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from hetero_sd.runtime.answer import Answer, run_stats
from hetero_sd.runtime.answer_options import Options
from hetero_sd.runtime.conversation import ALL, Conversation
from hetero_sd.runtime.decode.stats_text import stats_table
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text.prompts import Prompt, read_lines
from targets.errors import UserError

COMMANDS = """\
/reset       forget the conversation
/save FILE   write it as a line of JSON, as --prompts takes it
/stats       print measured and predicted times of the last answer
/help        print this
/quit        end, as Ctrl-D does; Ctrl-C ends an answer"""
_NAMES = ("reset", "save", "stats", "help", "quit")
_COMMAND = re.compile(rf"/({'|'.join(_NAMES)})(?:\s+(.*))?$", re.DOTALL)
_WORD = re.compile(r"/(\w+)(?:\s+.*)?$", re.DOTALL)


class Interactive:
    """Answers lines until there are no more."""

    def __init__(self, session: Session, when_full: str, options: Options, show: Callable[[Prompt, Answer], None]):
        """Answer with a session.

        Args:
            session: answers; with a chat template every line is a turn, without one a prompt of its own.
            when_full: one of conversation.WHEN_FULL.
            options: of every answer.
            show: generates and shows an answer to its end.
        """
        chats = session.template and session.text is not None and session.text.has_template
        self._session, self._options, self._show = session, options, show
        self._conversation = Conversation(session, when_full, **options) if chats else None
        self._when_full = when_full
        self._last: Answer | None = None
        self._asking = False

    def run(self) -> None:
        """Read lines; a mistake in one ends the run only where no person can give another."""
        self._asking = sys.stdin is not None and sys.stdin.isatty()
        if self._asking:
            print("/help lists commands; end with Ctrl-D", file=sys.stderr)
        for line in read_lines():
            try:
                if (found := _COMMAND.match(str(line.given))) and found[1] == "quit":
                    return
                self._line(line)
            except UserError as error:
                if not self._asking:
                    raise
                _note(f"error: {error}")
            except KeyboardInterrupt:
                if not self._asking:
                    raise
                print(flush=True)  # what came of the answer was kept; the person goes on

    def _line(self, line: Prompt) -> None:
        text = str(line.given)
        if found := _COMMAND.match(text):
            self._command(found[1], (found[2] or "").strip())
        elif mistake := _mistake(text):
            raise UserError(mistake)
        elif self._conversation is None:
            self._last = self._session.answer(self._session.encode(line), **self._options)
            self._show(line, self._last)
        else:
            self._turn(self._conversation, line)

    def _turn(self, conversation: Conversation, line: Prompt) -> None:
        answer = self._last = conversation.ask(str(line.given))
        if conversation.dropped:
            which = "all" if self._when_full == ALL else f"the {conversation.dropped} oldest"
            _note(f"note: the context of {self._session.context} tokens is full: {which} turns were dropped")
        try:
            self._show(line, answer)
        finally:
            conversation.keep(answer)
        if answer.stop_reason == "length" and self._asking:
            _note(f"note: the answer ends after {len(answer.token_ids)} tokens; --max-new-tokens N allows more")

    def _command(self, name: str, argument: str) -> None:
        if name == "help":
            print(COMMANDS, file=sys.stderr)
        elif name == "stats":
            if self._last is None:
                raise UserError("nothing was answered yet")
            print(stats_table(run_stats([self._last])), file=sys.stderr)
        elif self._conversation is None:
            raise UserError(f"/{name} is for conversations, and there is no chat template: every line is on its own")
        elif name == "reset":
            self._conversation.reset()
            _note("note: the conversation was forgotten")
        else:
            if not argument:
                raise UserError("/save needs the name of a file")
            self._conversation.save(Path(argument))
            _note(f"note: {argument} holds the conversation")


def _mistake(text: str) -> str:
    """What is wrong with a line that begins as a command does and is none; empty of a text."""
    found = _WORD.match(text)
    near = difflib.get_close_matches(found[1].lower(), _NAMES, 1) if found else []
    if not found or (not near and text != f"/{found[1]}"):
        return ""
    meant = f"did you mean /{near[0]}? " if near else ""
    return f"there is no command /{found[1]}: {meant}/help lists them; a text may begin with a space"


def _note(text: str) -> None:
    print(f"run.py: {text}", file=sys.stderr)
