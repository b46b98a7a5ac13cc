"""The tokenizer's folder: special tokens, chat templates, and what can be wrong with them."""

from __future__ import annotations

import builtins
import json

import pytest

from hetero_sd.runtime.text import chat_template as chat_template_module
from hetero_sd.runtime.text.bounded_call import bounded_text
from hetero_sd.runtime.text.chat_template import Chat
from hetero_sd.runtime.text.tokenizer import Text, text_of_folder
from targets.errors import UserError
from tests.attack.templates import KINDS


@pytest.fixture
def folder(tmp_path, tokenizers_by_kind):
    tokenizers_by_kind["byte level"].save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def load(folder):
    return Text(lambda name: folder / name if (folder / name).exists() else None)


def write(folder, name, value):
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")


def test_text_round_trip(folder):
    text = load(folder)
    ids = text.encode_prompt("hello wörld 😀")
    assert text.decode([*ids, text._tokenizer.token_to_id("<|end|>")]) == "hello wörld 😀"
    assert max(ids) < text.vocab


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ({}, []),
        ({"tokenizer_config.json": {"eos_token": "<|end|>"}}, ["<|end|>"]),
        ({"tokenizer_config.json": {"eos_token": {"content": "<|user|>"}}}, ["<|user|>"]),
        ({"tokenizer_config.json": {"eos_token": None}}, []),
        ({"generation_config.json": {"eos_token_id": 65}}, ["b"]),
        ({"generation_config.json": {"eos_token_id": [65, 66]}}, ["b", "c"]),
        (
            {"generation_config.json": {"eos_token_id": 65}, "tokenizer_config.json": {"eos_token": "<|end|>"}},
            ["b", "<|end|>"],
        ),
    ],
)
def test_end_of_text_ids_come_from_both_files(folder, files, names):
    for name, value in files.items():
        write(folder, name, value)
    text = load(folder)
    assert text.eos_ids == {text._tokenizer.token_to_id(name) for name in names}


TEMPLATE = """\
{%- for m in messages %}
{{ bos_token }}<|user|>{{ m.content }}
{%- endfor %}
{% if add_generation_prompt %}>{% endif %}"""


@pytest.mark.parametrize("where", ["own file", "config", "config by name"])
def test_chat_template_wraps_the_prompt(folder, where):
    if where == "own file":
        write(folder, "chat_template.jinja", TEMPLATE)
        write(folder, "tokenizer_config.json", {"bos_token": "B", "chat_template": "other"})
    elif where == "config":
        write(folder, "tokenizer_config.json", {"bos_token": "B", "chat_template": TEMPLATE})
    else:
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
        write(folder, "tokenizer_config.json", {"bos_token": "B", "chat_template": named})
    text = load(folder)
    ids = text.encode_prompt("hello")
    assert text._tokenizer.decode(ids, skip_special_tokens=False) == "B<|user|>hello>"
    assert text._tokenizer.token_to_id("<|user|>") in ids
    assert text.decode(text.encode_prompt("hello", chat=False)) == "hello"


@pytest.mark.parametrize("odd", [3, None, True, ["a"], {"a": 1}], ids=str)
def test_names_and_templates_that_are_no_strings(folder, odd):
    """They are no templates, or have names that nobody asks for; the message names them in one line."""
    others = [{"name": odd, "template": "x"}, {"name": "y", "template": odd}, {"template": "x"}, odd]
    for named in (others, [*others, {"name": "default", "template": TEMPLATE}]):
        write(folder, "tokenizer_config.json", {"bos_token": "B", "eos_token": odd, "chat_template": named})
        text = load(folder)
        if named == others:
            with pytest.raises(UserError, match="has chat templates by name") as caught:
                text.encode_prompt("hello")
            assert "\n" not in str(caught.value)
        else:
            assert text._tokenizer.decode(text.encode_prompt("hello"), skip_special_tokens=False) == "B<|user|>hello>"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% if %}", "Expected"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{{ nothing.at.all }}", "undefined"),
    ],
)
def test_failing_template_is_one_line(folder, template, reason):
    write(folder, "chat_template.jinja", template)
    with pytest.raises(UserError, match=reason) as caught:
        load(folder).encode_prompt("hello")
    assert "\n" not in str(caught.value)
    assert "--no-chat-template" in str(caught.value)


def test_template_helpers_of_common_templates(folder):
    template = "{{ messages | tojson }}{% for i in range(9) %}{% break %}{% endfor %}{{ strftime_now('%Y') | length }}"
    write(folder, "chat_template.jinja", template)
    text = load(folder)
    assert text.decode(text.encode_prompt("ü")) == '[{"role": "user", "content": "ü"}]4'


def test_the_tag_that_marks_what_the_model_says(folder):
    """Templates for training have it; what it encloses is rendered like the rest, and its variables stay inside."""
    said = "{% generation %}{{ m.content }}{{ x }}{% endgeneration %}"
    template = "{% set x = 'a' %}{% for m in messages %}" + said + "{% endfor %}"
    write(folder, "chat_template.jinja", template)
    text = load(folder)
    assert text.encode_prompt("hi") == text.encode("hia", special=False)


@pytest.mark.parametrize(
    ("arguments", "rendered"),
    [
        ("", '{"b": "ü", "a": 1}'),
        ("ensure_ascii=True", '{"b": "\\u00fc", "a": 1}'),
        ("separators=(',', ':')", '{"b":"ü","a":1}'),
        ("sort_keys=True", '{"a": 1, "b": "ü"}'),
        ("indent=1", '{\n "b": "ü",\n "a": 1\n}'),
        ("indent=none, ensure_ascii=false, separators=(', ', ':'), sort_keys=true", '{"a":1, "b":"ü"}'),
    ],
)
def test_json_with_the_arguments_that_transformers_takes(folder, arguments, rendered):
    write(folder, "chat_template.jinja", "{{ {'b': 'ü', 'a': 1} | tojson(" + arguments + ") }}")
    text = load(folder)
    assert text.encode_prompt("") == text.encode(rendered, special=False)


def test_what_transformers_defines_as_none_is_none(folder):
    template = "{% if tools is defined and tools is none and documents is none %}y{% else %}n{% endif %}"
    write(folder, "chat_template.jinja", template)
    text = load(folder)
    assert text.encode_prompt("") == text.encode("y", special=False)


def test_templates_in_files_of_their_own(folder):
    write(folder, "chat_template.jinja", "d")
    (folder / "additional_chat_templates").mkdir()
    write(folder, "additional_chat_templates/rag.jinja", "r")
    write(folder, "additional_chat_templates/tool_use.jinja", "t")
    text = text_of_folder(folder)
    ask = [{"role": "user", "content": "x"}]
    found = [text.decode(text.encode_prompt(given)) for given in (Chat(ask), Chat(ask, [{"name": "f"}]), "x")]
    assert found == ["d", "t", "d"]
    text.use_template("rag")
    assert text.decode(text.encode_prompt("x")) == "r"
    with pytest.raises(UserError, match="no chat template 'x': the tokenizer has default, rag, tool_use"):
        text.use_template("x")
    with pytest.raises(UserError, match="leave out --no-chat-template"):
        text.encode_prompt(Chat(ask), chat=False)
    (folder / "chat_template.jinja").unlink()
    (folder / "additional_chat_templates/rag.jinja").unlink()
    (folder / "additional_chat_templates/tool_use.jinja").unlink()
    with pytest.raises(UserError, match="the tokenizer has none: give a prompt"):
        text_of_folder(folder).encode_prompt(Chat(ask))


def test_several_templates_without_a_default_are_said(folder):
    named = [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"}]
    write(folder, "tokenizer_config.json", {"chat_template": named})
    text = load(folder)
    with pytest.raises(UserError, match=r"by name \(rag, tool_use\) and none is called default.*--no-chat-template"):
        text.encode_prompt("hi")
    assert text.encode_prompt("hi", chat=False) == text.encode("hi")


def test_without_jinja2_the_message_says_what_to_do(folder, monkeypatch):
    write(folder, "chat_template.jinja", TEMPLATE)
    text = load(folder)
    honest = builtins.__import__

    def blocked(name, *rest, **more):
        if name.startswith("jinja2"):
            raise ImportError(name)
        return honest(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with pytest.raises(UserError, match="install it, or give --no-chat-template"):
        text.encode_prompt("hello")
    assert text.encode_prompt("hello", chat=False)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("tokenizer.json", "\x00", "is not a tokenizer"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("tokenizer_config.json", "[" * 10**5, "not valid JSON"),
        ("generation_config.json", "[]", "not a JSON object"),
    ],
)
def test_malformed_files_are_named(folder, name, content, reason):
    write(folder, name, content)
    with pytest.raises(UserError, match=reason) as caught:
        load(folder)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no tokenizer"):
        load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("template", KINDS, ids=range(len(KINDS)))
def test_a_hostile_template_ends_in_one_line(folder, monkeypatch, template):
    """By its bounds; a tenth of the time that it may take in use, so that the test is short."""
    monkeypatch.setattr(
        chat_template_module, "bounded_text", lambda make: bounded_text(make, seconds=0.2, most_bytes=1 << 20)
    )
    write(folder, "chat_template.jinja", template)
    with pytest.raises(UserError, match="the chat template fails") as caught:
        load(folder).encode_prompt("hello")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_fails_is_said_in_one_line(folder):
    class Panic(BaseException):
        pass

    class Failing:
        def encode(self, *given, **more):
            raise Panic("called `Option::unwrap()`\non a `None` value")

    text = load(folder)
    text._tokenizer = Failing()
    with pytest.raises(
        UserError, match=r"the tokenizer fails on the text \(called `Option::unwrap\(\)` on a `None` value"
    ):
        text.encode_prompt("hello")
