"""A conversation: turns with history, and what is left out of it when the context is full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hetero_sd.runtime.answer import Answer
from hetero_sd.runtime.answer_options import Options
from hetero_sd.runtime.session import Session
from hetero_sd.runtime.text.chat_template import ASSISTANT, SYSTEM, USER, Chat
from hetero_sd.runtime.text.prompts import Prompt, prompt_of_text
from targets.errors import UserError
from targets.files import write_text

if TYPE_CHECKING:
    from typing import Unpack

WHEN_FULL = OLDEST, ALL, STOP = "oldest", "all", "stop"
_LEAST_ROOM = 0.25  # of the context, for an answer, where no shorter one was asked for
_KEPT = 0.5  # of the context that turns take after some were dropped: what is left must be read again, so seldom


class Conversation:
    """The messages so far, and the session that answers them.

    Of every turn only what is new is read, because the caches keep the beginning. Where a question with room for its
    answer does not fit the context any more, ``when_full`` says what is done: "oldest" drops the oldest turns until
    half of the context is free, "all" drops all turns, "stop" refuses the question. The system message stays.

    Attributes:
        messages: as chat templates read them, without a system message.
        dropped: turns that were left out for the question before.
    """

    def __init__(self, session: Session, when_full: str = OLDEST, **options: Unpack[Options]) -> None:
        """Begin without a message; ``options`` are those of every answer."""
        self._session, self._when_full, self._options = session, when_full, options
        self.messages: list[dict[str, Any]] = []
        self.dropped = 0

    def ask(self, text: str) -> Answer:
        """Begin the answer to a question; :meth:`keep` ends the turn.

        Raises:
            UserError: the question does not fit the context, or the conversation is full and ``when_full`` is "stop";
                the messages are as before then.
        """
        prompt_of_text(text, "the question")
        question = {"role": USER, "content": text}
        turns, ids = self._fitting([*self.messages, question])
        answer = self._session.answer(ids, **self._options)
        self.dropped = sum(m["role"] == USER for m in self.messages) + 1 - sum(m["role"] == USER for m in turns)
        self.messages = turns
        return answer

    def keep(self, answer: Answer) -> None:
        """Add what was generated of the answer, so that the next turn can refer to it."""
        answer.close()
        self.messages.append({"role": ASSISTANT, "content": answer.text})

    def reset(self) -> None:
        """Forget all turns."""
        self.messages = []

    def save(self, path: Path) -> None:
        """Write the conversation, its system message among it, as a line of JSON with ``messages``.

        Raises:
            UserError: the file cannot be written.
        """
        system = self._session.system
        first = [] if system is None else [{"role": SYSTEM, "content": system}]
        write_text(path, json.dumps({"messages": [*first, *self.messages]}, ensure_ascii=False) + "\n")

    def _fitting(self, turns: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[int]]:
        """The turns that are kept, with their ids."""
        context = self._session.context
        most = self._options.get("max_new_tokens", self._session.request.max_new_tokens)
        room = min(most, int(_LEAST_ROOM * context))
        ids, size = self._encode(turns)
        if size + room <= context + 1 or (len(turns) == 1 and size <= context):
            return turns, ids
        if self._when_full == STOP and len(turns) > 1:
            raise UserError(
                f"the context of {context} tokens is full: /reset forgets the conversation; run.py --when-full oldest "
                "would drop its oldest turns"
            )
        limit = 0 if self._when_full == ALL else int(_KEPT * context)
        while size > limit and (later := _after_first_turn(turns)):
            turns = later
            ids, size = self._encode(turns)
        self._session.encode(Prompt(ids, "the question"))  # refuses what is too long alone
        return turns, ids

    def _encode(self, turns: list[dict[str, Any]]) -> tuple[list[int], int]:
        session = self._session
        assert session.text is not None
        ids = session.text.encode_prompt(session.with_system(Chat(turns)), session.template)
        return ids, len(ids)


def _after_first_turn(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is left without the oldest question and its answer; empty where there is only one question."""
    return next((turns[i:] for i in range(1, len(turns)) if turns[i]["role"] == USER), [])
