"""Bodies of requests: what is taken, and what is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sd.runtime.serve.errors import ApiError
from hetero_sd.runtime.serve.parameters import Asked, parse_body, parse_request
from hetero_sd.runtime.text.chat_template import Chat

SAY = [{"role": "user", "content": "hi"}]


def parsed(chat: bool = False, defaults: Any = None, **body: Any) -> Asked:
    first = {"messages": SAY} if chat else {"prompt": "hi"}
    return parse_request({**first, **body}, chat, "toy", defaults or {"max_new_tokens": 256, "temperature": 0.0})


def test_what_is_left_out_is_the_servers() -> None:
    asked = parsed(defaults={"max_new_tokens": 7, "temperature": 0.5, "stop": ("x",)})
    assert asked.generation.options == {"max_new_tokens": 7, "temperature": 0.5, "stop": ("x",)}
    assert (asked.generation.choices, asked.stream, asked.usage_in_stream) == (1, False, False)
    assert asked.generation.prompt == "hi"


def test_everything_that_is_honoured() -> None:
    more = {"temperature": 1, "top_p": 0.9, "top_k": 5, "seed": 4, "stop": "end", "n": 2, "user": "me", "model": "toy"}
    asked = parsed(True, stream=True, stream_options={"include_usage": True}, max_completion_tokens=9, **more)
    options = {"max_new_tokens": 9, "temperature": 1.0, "top_p": 0.9, "top_k": 5, "seed": 4, "stop": ["end"]}
    assert asked.generation.options == options
    assert (asked.generation.choices, asked.stream, asked.usage_in_stream, asked.chat) == (2, True, True, True)
    assert asked.generation.prompt == Chat(SAY)


def test_values_that_ask_for_nothing_are_as_good_as_none() -> None:
    nothing = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "logprobs": False, "tools": []}
    assert parsed(**nothing, best_of=1, echo=False, response_format={"type": "text"}, foo=None) == parsed()


@pytest.mark.parametrize(
    ("chat", "body", "top"),
    [
        (False, {}, None),
        (False, {"logprobs": False}, None),
        (False, {"logprobs": 0}, 0),
        (False, {"logprobs": 5}, 5),
        (True, {"logprobs": False, "top_logprobs": 0}, None),
        (True, {"logprobs": True}, 0),
        (True, {"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_how_many_logprobs_are_told(chat: bool, body: dict[str, Any], top: int | None) -> None:
    asked = parsed(chat, **body)
    assert (asked.generation.options.get("logprobs"), asked.logprobs) == (top, top is not None)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", "a"), (["a"], "a"), ([1, 2], [1, 2]), ([[1, 2]], [1, 2])],
)
def test_a_prompt_is_a_text_or_ids(prompt: Any, expected: Any) -> None:
    assert parsed(prompt=prompt).generation.prompt == expected


def test_parts_of_a_message_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = parsed(True, messages=[{"role": "user", "content": parts}])
    assert asked.generation.prompt == Chat([{"role": "user", "content": "a\nb"}])


@pytest.mark.parametrize(
    ("body", "parameter", "said"),
    [
        ({"foo": 1}, "foo", "foo is not supported by this server; leave it out"),
        ({"logprobs": 6}, "logprobs", "not a whole number from 0 to 5"),
        ({"logprobs": True}, "logprobs", "not a whole number from 0 to 5"),
        ({"top_logprobs": 1}, "top_logprobs", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"best_of": True}, "best_of", "not supported"),
        ({"echo": True}, "echo", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not constrained"),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "not supported"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is not a whole number from 1"),
        ({"max_tokens": 2.0}, "max_tokens", "not a whole number"),
        ({"max_tokens": True}, "max_tokens", "not a whole number"),
        ({"max_tokens": 10**400}, "max_tokens", "not a whole number"),
        ({"temperature": -1}, "temperature", "not a number from 0"),
        ({"temperature": "1"}, "temperature", "not a number"),
        ({"temperature": 10**400}, "temperature", "not a number"),
        ({"top_p": 0, "temperature": 1}, "top_p", "above 0 and at most 1"),
        ({"top_p": 0.5}, "top_p", "give temperature, too"),
        ({"top_k": 5}, "top_k", "give temperature, too"),
        ({"seed": -1}, "seed", "whole number from 0"),
        ({"n": 0}, "n", "from 1 to 16"),
        ({"n": 17}, "n", "from 1 to 16"),
        ({"stop": ""}, "stop", "none of them empty"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": [1]}, "stop", "a text or a list"),
        ({"stream": 1}, "stream", "true or false"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "belongs to stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "x", "not supported"),
        ({"prompt": None}, "prompt", "prompt is not one text or one list of token ids"),
        ({"prompt": ["a", "b"]}, "prompt", "ask once for each"),
        ({"prompt": []}, "prompt", "not one text"),
        ({"prompt": [True]}, "prompt", "not one text"),
        ({"user": 5}, "user", "not a text"),
        ({"model": 5}, "model", "not a text"),
    ],
)
def test_a_completion_is_refused_by_name(body: dict[str, Any], parameter: str, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(**body)
    assert (caught.value.status, caught.value.parameter) == (400, parameter)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("body", "parameter", "said"),
    [
        ({"messages": None}, "messages", "not a list with at least one message"),
        ({"messages": "hi"}, "messages", "not a list"),
        ({"messages": [{"content": "hi"}]}, "messages", "not an object with a `role`"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "a part that is not a text"),
        (
            {"messages": [*SAY, {"role": "assistant", "content": "x"}]},
            "messages",
            "the last message is",
        ),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ"),
        ({"tools": [{"type": "function"}]}, "tools", "calls of tools would stay text"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "not a whole number from 0 to 20"),
        ({"top_logprobs": 3}, "top_logprobs", "belongs to logprobs"),
        ({"top_logprobs": 3, "logprobs": False}, "top_logprobs", "belongs to logprobs"),
        ({"logprobs": 3}, "logprobs", "not true or false"),
        ({"prompt": "hi"}, "prompt", "not supported"),
    ],
)
def test_a_chat_is_refused_by_name(body: dict[str, Any], parameter: str, said: str) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(True, **body)
    assert (caught.value.status, caught.value.parameter) == (400, parameter)
    assert said in caught.value.message


_NAMES = st.sampled_from(
    "prompt messages model max_tokens max_completion_tokens temperature top_p top_k seed stop n stream stream_options "
    "user logprobs top_logprobs tools best_of echo logit_bias response_format include_usage role content type "
    "text".split()
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | _NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(body=st.dictionaries(_NAMES, _JSON, max_size=5), chat=st.booleans())
def test_any_body_is_understood_or_refused(body: dict[str, Any], chat: bool) -> None:
    first = {"messages": SAY} if chat else {"prompt": "hi"}
    asked, refused = understood({**first, **body}, chat)
    if refused is not None:
        assert refused.status in (400, 404)
        json.dumps(refused.to_json(), ensure_ascii=False).encode("utf-8")
    else:
        assert asked is not None
        assert 1 <= asked.generation.choices <= 16
        assert asked.generation.options.get("max_new_tokens", 1) >= 1


def understood(body: dict[str, Any], chat: bool) -> tuple[Asked | None, ApiError | None]:
    try:
        return parse_request(body, chat, "toy", {}), None
    except ApiError as error:
        return None, error


def test_another_model_is_not_found() -> None:
    with pytest.raises(ApiError, match="there is no model 'gpt': this server has 'toy'") as caught:
        parsed(model="gpt")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": NaN}', "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    ],
)
def test_a_body_that_is_no_object_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(ApiError, match=said) as caught:
        parse_body(raw)
    assert caught.value.status == 400


def test_a_body() -> None:
    assert parse_body('{"prompt": "é"}'.encode()) == {"prompt": "é"}
