"""Text to token ids: the tokenizer of a bundle, its chat template and its end-of-text ids."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from targets.errors import UserError
from targets.files import read_object

FOLDER = "tokenizer"
MOST_BYTES = 256 << 20  # of one of its files
_ALWAYS_GIVEN = ("bos_token", "eos_token")
_SPECIAL = ("pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


class Text:
    """A tokenizer with what its folder says about special tokens and chats."""

    def __init__(self, find: Callable[[str], Path | None]) -> None:
        """Load the files of :data:`FILES`.

        Args:
            find: gives the path of one of those files, or None where there is none; only tokenizer.json must exist.

        Raises:
            UserError: a file is missing or malformed.
        """
        path = find("tokenizer.json")
        if path is None:
            raise UserError("there is no tokenizer.json: give token_ids, or build the bundle from a folder that has it")
        try:
            self._tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except Exception as error:  # the library raises plain Exception for a malformed file
            raise UserError(f"{path} is not a tokenizer: {_one_line(error)}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._config = read_config(find("tokenizer_config.json"))
        self.eos_ids = frozenset(self._eos_ids(read_config(find("generation_config.json"))))
        self._named: tuple[str, ...] = ()  # chat templates by name without a default one
        self._template = self._chat_template(find("chat_template.jinja"))

    @property
    def vocab(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the ids of ``text``; ``special`` adds what the tokenizer puts around a text, such as BOS."""
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def encode_prompt(self, text: str, chat: bool = True) -> list[int]:
        """Return the ids of a user's ``text``, put in the chat template if there is one and ``chat`` is true.

        Raises:
            UserError: jinja2 is missing, the template fails, or there are several and none is the default.
        """
        if chat and self._named:
            raise UserError(
                f"tokenizer_config.json has chat templates by name ({', '.join(self._named)[:200]}) and none is called "
                "default: put the one to use into chat_template.jinja beside it, or give --no-chat-template"
            )
        if self._template is None or not chat:
            return self.encode(text)
        return self.encode(self._render(self._template, text), special=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _special_token(self, key: str) -> str | None:
        """Return e.g. the bos_token of tokenizer_config.json."""
        return special_token(self._config, key)

    def _eos_ids(self, generation_config: dict[str, Any]) -> list[int]:
        """Return the end-of-text ids that the two configuration files state."""
        return [*generation_eos(generation_config), *tokenizer_eos(self._tokenizer, self._config)]

    def _chat_template(self, path: Path | None) -> str | None:
        """Return the chat template: its own file, or the entry of tokenizer_config.json."""
        if path is not None:
            return _read(path)
        template = self._config.get("chat_template")
        if isinstance(template, list):  # several by name
            template = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        if isinstance(template, dict):
            self._named = tuple(template) if "default" not in template else ()
            template = template.get("default")
        return template if isinstance(template, str) else None

    def _render(self, template: str, text: str) -> str:
        """Render the template for one message of the user, in a sandbox: it is a program from outside."""
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise UserError("the chat template needs jinja2: install it, or give --no-chat-template") from None

        def fail(message: str) -> None:
            raise ValueError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = fail
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        try:
            return environment.from_string(template).render(
                messages=[{"role": "user", "content": text}],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **{key: self._special_token(key) or "" for key in _ALWAYS_GIVEN},
                **{key: token for key in _SPECIAL if (token := self._special_token(key)) is not None},
            )
        except Exception as error:  # whatever a template can do wrong
            raise UserError(f"the chat template fails ({_one_line(error)}): give --no-chat-template") from None


def generation_eos(config: Mapping[str, Any]) -> list[int]:
    """Return the end-of-text ids of a generation_config.json: one, several, or none."""
    stated = config.get("eos_token_id")
    return [i for i in (stated if isinstance(stated, list) else [stated]) if type(i) is int]


def tokenizer_eos(tokenizer: Any, config: Mapping[str, Any]) -> list[int]:
    """Return the id of the eos_token that a tokenizer_config.json names, if the tokenizer knows it."""
    token = special_token(config, "eos_token")
    found = None if token is None else tokenizer.token_to_id(token)
    return [] if found is None else [int(found)]


def special_token(config: Mapping[str, Any], key: str) -> str | None:
    """Return a token of a tokenizer_config.json, given as a string or as an object with `content`."""
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """The filter ``tojson`` with the arguments that transformers gives it."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_tag() -> Any:
    """The tag ``{% generation %}...{% endgeneration %}``, which marks what the model says: here its content alone."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (jinja2's own form)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

        def _content(self, caller: Any) -> Any:
            return caller()

    return Generation


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None


def read_config(path: Path | None) -> dict[str, Any]:
    """Return the JSON object of a configuration file; empty where there is no file."""
    return {} if path is None else read_object(path, "a tokenizer's configuration", MOST_BYTES)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
