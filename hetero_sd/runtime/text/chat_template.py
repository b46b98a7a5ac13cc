"""Chat templates, run as transformers runs them: a conversation in, the text that the model is to go on with out."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hetero_sd.runtime.text.bounded_call import CallFailed, bounded_text
from targets.errors import UserError

Message = Mapping[str, Any]
ROLES = SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
DEFAULT, TOOL_USE = "default", "tool_use"  # names that transformers gives a meaning


@dataclass(frozen=True)
class Chat:
    """A conversation that is to be gone on with.

    Attributes:
        messages: objects with `role`, `content` and whatever else the template reads, the oldest first.
        tools: JSON schemas of functions that the model may call, or None.
    """

    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None


class ChatTemplate:
    """One template; it is compiled and run in a copy of the process, for a stranger wrote it."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Keep the source, and the tokens that it may name, such as ``bos_token``."""
        self._source, self._special_tokens = source, special_tokens

    def render(self, chat: Chat) -> str:
        """Render a conversation with the beginning of an answer, in a sandbox: a template is a program from outside.

        Raises:
            UserError: jinja2 is missing, or the template fails, refuses the conversation, or reaches a bound.
        """
        try:
            environment = _environment()
        except ImportError:
            raise UserError("the chat template needs jinja2: install it, or give --no-chat-template") from None

        def render() -> str:
            text: str = environment.from_string(self._source).render(
                messages=[dict(message) for message in chat.messages],
                tools=None if chat.tools is None else [dict(tool) for tool in chat.tools],
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            )
            return text

        try:
            return bounded_text(render)
        except CallFailed as error:  # whatever a template can do wrong
            reason = " ".join(str(error).split())
            raise UserError(f"the chat template fails ({reason}): give --no-chat-template") from None
        except OSError as error:
            raise UserError(
                f"the chat template has no process to run in ({error.strerror}): end other programs"
            ) from None


def choose_template(names: Sequence[str], wanted: str | None, tools: bool) -> str:
    """Return which of several templates by name is used, as transformers does.

    Args:
        names: of the templates.
        wanted: the user's choice, or None.
        tools: the conversation has tools.

    Raises:
        UserError: there is none of that name, or none is called default.
    """
    known = ", ".join(names)[:200]
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"there is no chat template {wanted!r}: the tokenizer has {known or 'none'}")
        return wanted
    if tools and TOOL_USE in names:
        return TOOL_USE
    if DEFAULT not in names:
        raise UserError(
            f"tokenizer_config.json has chat templates by name ({known}) and none is called default: choose one with "
            "--chat-template NAME, or give --no-chat-template"
        )
    return DEFAULT


def _environment() -> Any:
    """What transformers' templates run in."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = fail
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


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
