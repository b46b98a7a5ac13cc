"""Answers in OpenAI's form, whole or in pieces."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hetero_sd.runtime.serve.counts import TokenCounts
from hetero_sd.runtime.serve.shown_tokens import ShownToken
from hetero_sd.runtime.text.chat_template import ASSISTANT

FINISH_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


@dataclass(frozen=True)
class Reply:
    """Makes the objects of one reply.

    Attributes:
        model: its name.
        chat: the texts are messages.
        with_usage: pieces have the field usage, null but in the last one.
    """

    model: str
    chat: bool
    with_usage: bool = False
    made_s: int = field(default_factory=lambda: int(time.time()))
    name: str = field(default_factory=lambda: secrets.token_hex(12))

    def whole(
        self,
        texts: Sequence[str],
        reasons: Sequence[str],
        usage: Mapping[str, Any],
        tokens: Sequence[Sequence[ShownToken] | None],
    ) -> dict[str, Any]:
        """All choices at once, with the tokens of those whose probabilities were asked for."""
        choices = []
        for i, (text, reason) in enumerate(zip(texts, reasons, strict=True)):
            shown = {"message": {"role": ASSISTANT, "content": text}} if self.chat else {"text": text}
            known = {"logprobs": self._logprobs(tokens[i], 0), "finish_reason": FINISH_REASONS[reason]}
            choices.append({"index": i, **shown, **known})
        return {**self._head("chat.completion"), "choices": choices, "usage": usage}

    def opening(self, choice: int) -> dict[str, Any] | None:
        """What comes before the text of a choice; None where nothing does."""
        return self._piece(choice, {"delta": {"role": ASSISTANT, "content": ""}}, None) if self.chat else None

    def piece(
        self, choice: int, text: str, tokens: Sequence[ShownToken] | None = None, offset: int = 0
    ) -> dict[str, Any]:
        """More text of a choice, after as many characters, with its tokens where they were asked for."""
        shown = {"delta": {"content": text}} if self.chat else {"text": text}
        return self._piece(choice, shown, None, self._logprobs(tokens, offset))

    def _logprobs(self, tokens: Sequence[ShownToken] | None, offset: int) -> dict[str, Any] | None:
        """As chats have them, or as completions do: there texts are the keys, of which the most probable one counts."""
        if tokens is None:
            return None
        if self.chat:
            top = [{**_of_chat(token), "top_logprobs": [_of_chat(one) for one in token.top]} for token in tokens]
            return {"content": top, "refusal": None}
        offsets = itertools.accumulate((len(token.text) for token in tokens), initial=offset)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [_of_text(token) for token in tokens] if any(token.top for token in tokens) else None,
            "text_offset": [*offsets][: len(tokens)],
        }

    def end(self, choice: int, reason: str) -> dict[str, Any]:
        """Why a choice ended."""
        return self._piece(choice, {"delta": {}} if self.chat else {"text": ""}, FINISH_REASONS[reason])

    def usage(self, usage: Mapping[str, Any]) -> dict[str, Any]:
        """The counts of tokens, after all choices."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _piece(
        self, choice: int, shown: Mapping[str, Any], reason: str | None, logprobs: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        choices = [{"index": choice, **shown, "logprobs": logprobs, "finish_reason": reason}]
        usage = {"usage": None} if self.with_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": choices, **usage}

    def _head(self, kind: str) -> dict[str, Any]:
        name, kind = (f"chatcmpl-{self.name}", kind) if self.chat else (f"cmpl-{self.name}", "text_completion")
        return {"id": name, "object": kind, "created": self.made_s, "model": self.model}


def _of_chat(token: ShownToken) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": None if token.data is None else [*token.data]}


def _of_text(token: ShownToken) -> dict[str, float]:
    """The most probable tokens by their texts, and the token itself."""
    return {token.text: token.logprob, **{one.text: one.logprob for one in reversed(token.top)}}


def usage_of(counts: Sequence[TokenCounts]) -> dict[str, Any]:
    """OpenAI's counts of tokens for the choices of a reply, and what speculation did for them.

    The prompt counts once; `cached_tokens` of it were not read again for the first choice.
    """
    total = sum(counts, TokenCounts())
    first = counts[0] if counts else total
    return {
        "prompt_tokens": first.prompt,
        "completion_tokens": total.generated,
        "total_tokens": first.prompt + total.generated,
        "prompt_tokens_details": {"cached_tokens": first.kept},
        "speculation": {
            "drafted_tokens": total.drafted,
            "accepted_tokens": total.accepted,
            "target_passes": total.rounds + len(counts),
        },
    }
