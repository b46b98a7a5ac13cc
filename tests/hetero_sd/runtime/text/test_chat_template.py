"""Which of several templates is taken, and that conversations are rendered as transformers renders them."""

from __future__ import annotations

import pytest

from hetero_sd.runtime.text.chat_template import Chat, ChatTemplate, choose_template
from targets.errors import UserError

# The template of SmolLM2-135M-Instruct, and what transformers makes of it.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_conversation_of_several_turns() -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    chat = Chat([{"role": role, "content": content} for role, content in turns])
    head = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    body = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert ChatTemplate(CHATML, {}).render(chat) == f"{head}{body}<|im_start|>assistant\n"
    own = Chat([{"role": "system", "content": "s"}, *chat.messages])
    assert ChatTemplate(CHATML, {}).render(own) == f"<|im_start|>system\ns<|im_end|>\n{body}<|im_start|>assistant\n"


def test_tools_and_calls() -> None:
    template = (
        "{%- if tools is not none %}{% for t in tools %}{{ t | tojson(indent=1) }};{% endfor %}{% endif %}"
        "{%- for m in messages %}{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments | tojson }}"
        "{% else %}{{ m.content }}{% endif %}|{% endfor %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": "ü"}}}]}
    messages = [{"role": "user", "content": "a"}, call, {"role": "tool", "content": "3"}]
    assert ChatTemplate(template, {}).render(Chat(messages)) == 'a|{"x": "ü"}|3|'
    shown = ChatTemplate(template, {}).render(Chat(messages, [{"name": "f"}]))
    assert shown == '{\n "name": "f"\n};a|{"x": "ü"}|3|'


def test_a_template_cannot_change_the_conversation() -> None:
    chat = Chat([{"role": "user", "content": "a"}])
    with pytest.raises(UserError, match=r"unsafe|not safely callable"):
        ChatTemplate("{{ messages[0].update({'content': 'b'}) }}", {}).render(chat)
    assert chat.messages[0]["content"] == "a"


@pytest.mark.parametrize(
    ("names", "wanted", "tools", "chosen"),
    [
        (["default"], None, False, "default"),
        (["default"], None, True, "default"),
        (["rag", "default", "tool_use"], None, True, "tool_use"),
        (["rag", "default", "tool_use"], None, False, "default"),
        (["rag", "default", "tool_use"], "rag", True, "rag"),
        (["tool_use"], None, True, "tool_use"),
    ],
)
def test_which_of_several(names: list[str], wanted: str | None, tools: bool, chosen: str) -> None:
    assert choose_template(names, wanted, tools) == chosen


@pytest.mark.parametrize(
    ("wanted", "match"),
    [(None, r"by name \(rag\) and none is called default: choose one with --chat-template"), ("x", "has rag")],
)
def test_none_that_fits(wanted: str | None, match: str) -> None:
    with pytest.raises(UserError, match=match):
        choose_template(["rag"], wanted, False)
