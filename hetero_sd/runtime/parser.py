"""The parser of both command lines, host and device: a mistake is one line; and readers of numbers in a range."""

from __future__ import annotations

import argparse
import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from targets.errors import UserError

_UNBOUNDED = 2**63 - 1


class Parser(argparse.ArgumentParser):
    """Reports a mistake as one line, with what is there under a similar name; --help has the usage.

    `hint` is added to what is said of an option that does not exist, where another program's options can follow.
    """

    hint = ""

    def error(self, message: str) -> NoReturn:
        """Raise the mistake.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message} (`{self.prog} --help` lists the options)")

    def parse_all(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """The options; one that does not exist is told with the subcommand's name and the option nearest to it.

        Raises:
            UserError: a mistake in the arguments.
        """
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            parser: Parser = getattr(options, "subparser", self)
            parser._refuse(next((text for text in unknown if text.startswith("-")), unknown[0]))
        return options

    def _refuse(self, wrong: str) -> NoReturn:
        """Refuse an argument that nothing takes."""
        if not wrong.startswith("-"):
            self.error(f"unknown argument {wrong}")
        nearest = _nearest(wrong.partition("=")[0], self._option_string_actions)
        self.error(f"unknown option {wrong}{nearest or self.hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is not among the choices; where one of them is similar, name that alone."""
        if action.choices is not None and value not in action.choices and (nearest := _nearest(value, action.choices)):
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{nearest}")
        super()._check_value(action, value)


def _nearest(wrong: str, known: Iterable[str]) -> str:
    """The question whether one of the known words was meant; "" where none is similar."""
    found = difflib.get_close_matches(wrong, list(known), 1, 0.7)
    return f": did you mean {found[0]}?" if found else ""


def whole(least: int, most: int = _UNBOUNDED) -> Callable[[str], int]:
    """Return a reader of whole numbers in a range."""
    wanted = f">= {least}" if most == _UNBOUNDED else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {wanted}")
        return value

    return read


def real(least: float) -> Callable[[str], float]:
    """Return a reader of finite numbers >= ``least``."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number >= {least:g}")
        return value

    return read


def share(text: str) -> float:
    """Read a number in (0, 1]."""
    value = real(0.0)(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return value
