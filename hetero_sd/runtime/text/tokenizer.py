"""Text to token ids: the tokenizer of a bundle, its chat template and its end-of-text ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from hetero_sd.runtime.text.chat_template import DEFAULT, USER, Chat, ChatTemplate, choose_template
from targets.errors import UserError
from targets.files import read_object

FOLDER = "tokenizer"
MOST_BYTES = 256 << 20  # of one of its files
_ALWAYS_GIVEN = ("bos_token", "eos_token")
_SPECIAL = (*_ALWAYS_GIVEN, "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
MORE_TEMPLATES = "additional_chat_templates"  # the folder of transformers for those with a name
FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


class Text:
    """A tokenizer with what its folder says about special tokens and chats."""

    def __init__(self, find: Callable[[str], Path | None], more_templates: Iterable[str] = ()) -> None:
        """Load the files of :data:`FILES`.

        Args:
            find: gives the path of one of those files, or None where there is none; only tokenizer.json must exist.
            more_templates: names of chat templates, NAME.jinja in the folder :data:`MORE_TEMPLATES`, that `find` knows.

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
        special = {key: token for key in _SPECIAL if (token := self._special_token(key)) is not None}
        special = {**dict.fromkeys(_ALWAYS_GIVEN, ""), **special}
        sources = self._template_sources(find("chat_template.jinja"))
        more = {Path(name).stem: find(name) for name in sorted(more_templates)}
        sources |= {name: _read(path) for name, path in more.items() if path is not None}
        self._templates = {name: ChatTemplate(source, special) for name, source in sources.items()}
        self._template_name: str | None = None  # the user's choice among them

    @property
    def vocab(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Return the ids of ``text``; ``special`` adds what the tokenizer puts around a text, such as BOS.

        Raises:
            UserError: the tokenizer fails on it.
        """
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=special).ids)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises plain Exception, and Rust panics are no Exception
            raise UserError(f"the tokenizer fails on the text ({_one_line(error)}): build the bundle again") from None

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        return bool(self._templates)

    def use_template(self, name: str | None) -> None:
        """Use the template of that name; None chooses as transformers does.

        Raises:
            UserError: there is none.
        """
        if name is not None:
            choose_template(tuple(self._templates), name, tools=False)
        self._template_name = name

    def encode_prompt(self, given: str | Chat, chat: bool = True) -> list[int]:
        """Return the ids of a user's text, put in the chat template if there is one and ``chat`` is true, or of a chat.

        Raises:
            UserError: jinja2 is missing, the template fails, none is the default, or there is none for a conversation.
        """
        if isinstance(given, str):
            if not (chat and self._templates):
                return self.encode(given)
            given = Chat([{"role": USER, "content": given}])
        if not chat:
            raise UserError("a conversation needs the chat template: leave out --no-chat-template")
        if not self._templates:
            raise UserError("a conversation needs a chat template, and the tokenizer has none: give a prompt")
        name = choose_template(tuple(self._templates), self._template_name, given.tools is not None)
        return self.encode(self._templates[name].render(given), special=False)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ``ids`` without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def name_of(self, token: int) -> str | None:
        """How the vocabulary names an id; None where it has none."""
        found = self._tokenizer.id_to_token(token)
        return None if found is None else str(found)

    def _special_token(self, key: str) -> str | None:
        """Return e.g. the bos_token of tokenizer_config.json."""
        return special_token(self._config, key)

    def _eos_ids(self, generation_config: dict[str, Any]) -> list[int]:
        """Return the end-of-text ids that the two configuration files state."""
        return [*generation_eos(generation_config), *tokenizer_eos(self._tokenizer, self._config)]

    def _template_sources(self, path: Path | None) -> dict[str, str]:
        """Return the chat templates by name: the default one may have a file of its own, the config has others."""
        template = self._config.get("chat_template")
        if isinstance(template, list):  # several by name
            template = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        elif not isinstance(template, dict):
            template = {DEFAULT: template}
        found = {str(name): source for name, source in template.items() if isinstance(source, str)}
        return found if path is None else {**found, DEFAULT: _read(path)}


def text_of_folder(folder: Path) -> Text:
    """The tokenizer whose files lie in a folder, as in that of a hub.

    Raises:
        UserError: a file is missing or malformed.
    """
    more = [path.relative_to(folder).as_posix() for path in more_templates(folder)]
    return Text(lambda name: path if (path := folder / name).is_file() else None, more)


def more_templates(folder: Path) -> list[Path]:
    """The files of chat templates with a name, beside a tokenizer."""
    return sorted(path for path in (folder / MORE_TEMPLATES).glob("*.jinja") if path.is_file())


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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
