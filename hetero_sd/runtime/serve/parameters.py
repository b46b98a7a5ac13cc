"""The body of a request: checked, every parameter honoured or refused by its name, none ignored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from hetero_sd.runtime.answer_options import Options
from hetero_sd.runtime.decode.logprobs import MOST_TOP
from hetero_sd.runtime.serve.engine import GenerationRequest
from hetero_sd.runtime.serve.errors import ApiError
from hetero_sd.runtime.serve.values import flag, json_object, real, share, stops, text, whole
from hetero_sd.runtime.text.chat_template import Chat
from hetero_sd.runtime.text.prompts import checked_chat
from targets.errors import UserError

_T = TypeVar("_T")
MOST_CHOICES = 16
MOST_TOP_OF_TEXTS = 5  # as in OpenAI's completions
_MOST_TOKENS, _MOST_TEMPERATURE, _MOST_SEED = 2**31, 100.0, 2**62
_NO_TOOLS = "calls of tools would stay text"
_REFUSED = {  # known ones that ask for what there is not -> why not
    "tools": _NO_TOOLS,
    "tool_choice": _NO_TOOLS,
    "functions": _NO_TOOLS,
    "function_call": _NO_TOOLS,
    "response_format": "the text is not constrained to a form",
}
_ASK_FOR_NOTHING: dict[str, tuple[Any, ...]] = {  # values that mean the same as leaving the parameter out
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "response_format": ({"type": "text"},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
}


@dataclass(frozen=True)
class Asked:
    """A request as it was understood.

    Attributes:
        generation: for the engine.
        chat: the reply has messages.
        stream: it comes in pieces.
        usage_in_stream: with the counts of tokens at the end.
        logprobs: with the probabilities of the tokens.
    """

    generation: GenerationRequest
    chat: bool
    stream: bool
    usage_in_stream: bool
    logprobs: bool = False


def parse_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        ApiError: it is none.
    """
    try:
        found = json.loads(raw.decode("utf-8"), parse_constant=_not_json)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # no halves of characters, which no reply could name
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "unreadable"
        raise ApiError(400, f"the body is not valid JSON ({reason})") from None
    if not isinstance(found, dict):
        raise ApiError(400, "the body is not a JSON object")
    return found


def _not_json(name: str) -> NoReturn:
    raise ValueError(name)


def parse_request(given: Mapping[str, Any], chat: bool, model: str, defaults: Options) -> Asked:
    """What a body asks for.

    Args:
        given: the body.
        chat: it came to /v1/chat/completions.
        model: the name of the only one.
        defaults: of the server, for what the body leaves out.

    Raises:
        ApiError: a parameter is unknown, unsupported or out of range.
    """
    body = _Body(given)
    named = body.take("model", text)
    if named is not None and named != model:
        raise ApiError(404, f"there is no model {named[:100]!r}: this server has {model!r}", "model", "model_not_found")
    prompt = _chat(body) if chat else _prompt(body)
    stream = body.take("stream", flag) or False
    choices = body.take("n", whole(1, MOST_CHOICES)) or 1
    usage = _stream_options(body, stream)
    options = _options(body, chat, defaults)
    top = _logprobs(body, chat)
    if top is not None:
        options["logprobs"] = top
    body.take("user", text)  # says who asks, which changes nothing of the answer
    body.refuse_the_rest()
    return Asked(GenerationRequest(prompt, options, choices, top is not None), chat, stream, usage, top is not None)


class _Body:
    """The parameters that nobody took yet; null is the same as none."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in given.items() if value is not None}

    def take(self, name: str, check: Callable[[Any], Any]) -> Any:
        """The value, None without one; `check` raises ValueError with what it should be."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        return _taken(name, value, check)

    def refuse_the_rest(self) -> None:
        for name, value in self._left.items():
            if not any(_same(value, nothing) for nothing in _ASK_FOR_NOTHING.get(name, ())):
                why = f": {_REFUSED[name]}" if name in _REFUSED else ""
                raise ApiError(400, f"{name[:100]} is not supported by this server{why}; leave it out", name[:100])


def _taken(name: str, value: Any, check: Callable[[Any], _T]) -> _T:
    try:
        return check(value)
    except ValueError as error:
        raise ApiError(400, f"{name} is not {error}", name) from None


def _same(value: Any, nothing: Any) -> bool:
    return isinstance(value, bool) == isinstance(nothing, bool) and bool(value == nothing)


def _options(body: _Body, chat: bool, defaults: Options) -> Options:
    options = Options(**defaults)
    most = body.take("max_tokens", whole(1, _MOST_TOKENS))
    newer = body.take("max_completion_tokens", whole(1, _MOST_TOKENS)) if chat else None
    if most is not None and newer is not None and most != newer:
        raise ApiError(400, "max_tokens and max_completion_tokens differ: give one", "max_tokens")
    temperature = body.take("temperature", real(0.0, _MOST_TEMPERATURE))
    found = {
        "max_new_tokens": newer if most is None else most,
        "temperature": temperature,
        "top_p": body.take("top_p", share),
        "top_k": body.take("top_k", whole(0, _MOST_TOKENS)),
        "seed": body.take("seed", whole(0, _MOST_SEED)),
        "stop": body.take("stop", stops),
    }
    options.update({name: value for name, value in found.items() if value is not None})  # type: ignore[typeddict-item]
    if temperature is None and not defaults.get("temperature"):
        for name, all_of_them in (("top_p", 1.0), ("top_k", 0)):
            if found[name] is not None and found[name] != all_of_them:
                message = f"{name} chooses among samples, and this server takes the best token: give temperature, too"
                raise ApiError(400, message, name)
    return options


def _logprobs(body: _Body, chat: bool) -> int | None:
    """Most probable tokens that are told with each token; None where no probabilities are."""
    if not chat:
        asked = body.take("logprobs", lambda value: None if value is False else whole(0, MOST_TOP_OF_TEXTS)(value))
        return None if asked is None else int(asked)
    asked = body.take("logprobs", flag)
    top = body.take("top_logprobs", whole(0, MOST_TOP))
    if not asked:
        if top:
            raise ApiError(400, "top_logprobs belongs to logprobs: leave it out, or give that", "top_logprobs")
        return None
    return int(top or 0)


def _stream_options(body: _Body, stream: bool) -> bool:
    given = body.take("stream_options", json_object)
    if given is None:
        return False
    if not stream:
        raise ApiError(400, "stream_options belongs to stream: leave it out, or give that", "stream_options")
    inner = _Body(given)
    usage = inner.take("include_usage", flag) or False
    inner.refuse_the_rest()
    return bool(usage)


def _chat(body: _Body) -> Chat:
    messages = body.take("messages", lambda value: value)
    try:
        return checked_chat({"messages": _plain(messages)}, "the request")
    except UserError as error:
        raise ApiError(400, str(error), "messages") from None


def _plain(messages: Any) -> Any:
    """The messages with contents that are lists of texts joined, a line each: few templates know such lists."""
    if not isinstance(messages, list):
        return messages
    found = []
    for message in messages:
        if isinstance(message, dict) and isinstance(content := message.get("content"), list):
            for part in content:
                if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                    raise ApiError(400, "messages has a part that is not a text: there is nothing else", "messages")
            message = {**message, "content": "\n".join(part["text"] for part in content)}
        found.append(message)
    return found


def _prompt(body: _Body) -> str | list[int]:
    prompt = body.take("prompt", lambda value: value)
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return _taken("prompt", prompt, text)
    if isinstance(prompt, list) and prompt and all(type(i) is int for i in prompt):
        return prompt
    raise ApiError(400, "prompt is not one text or one list of token ids: ask once for each", "prompt")
