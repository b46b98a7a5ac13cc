"""Dataclasses that are written as JSON objects and read back, checked by the types and bounds of their fields.

A field's type says what JSON may hold there, `typing.Annotated` adds bounds::

    threads: Annotated[int, Within(1, 1024)]

What is read is untrusted: every number, text and list is checked before it is used. Types are bool, int, float, str,
None, Any, tuple[T, ...], tuple of fixed length, dict with str or int keys, other records, and unions of those that
JSON tells apart. A field with a default may be missing from JSON, and is always written.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

_SHOWN = 60  # characters of a wrong value in a message
_MOST_ENTRIES = 1 << 20  # of a list or an object without bounds of its own
R = TypeVar("R", bound="Record")


class SchemaError(ValueError):
    """What is wrong and where, in one line without a full stop, for example "plan.threads is missing"."""


class Bound(Protocol):
    """A further condition on a value of the right type."""

    def refusal(self, value: Any) -> str | None:
        """What a wrong value is not, for "... is VALUE, <refusal>"; None for a right one."""


@dataclass(frozen=True)
class Within:
    """A number from `least` to `most`; with `above`, larger than that."""

    least: float | None = None
    most: float | None = None
    above: float | None = None

    def refusal(self, value: Any) -> str | None:
        """See :class:`Bound`."""
        low = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        if low and (self.most is None or value <= self.most):
            return None
        kind = "a whole number" if type(value) is int else "a number"
        if self.above is not None:
            return f"not {kind} above {self.above:g}" + ("" if self.most is None else f" and at most {self.most:g}")
        return f"not {kind} " + (f">= {self.least}" if self.most is None else f"from {self.least} to {self.most}")


@dataclass(frozen=True)
class Entries:
    """A list or an object with `least` to `most` entries."""

    least: int = 0
    most: int = _MOST_ENTRIES

    def refusal(self, value: Any) -> str | None:
        """See :class:`Bound`."""
        ok = self.least <= len(value) <= self.most
        return None if ok else f"which does not have {self.least} to {self.most} entries"


@dataclass(frozen=True)
class OneOf:
    """One of some texts."""

    known: tuple[str, ...]

    def refusal(self, value: Any) -> str | None:
        """See :class:`Bound`."""
        return None if value in self.known else f"none of {', '.join(self.known)}"


@dataclass(frozen=True)
class Ascending:
    """A list of different values in rising order."""

    def refusal(self, value: Any) -> str | None:
        """See :class:`Bound`."""
        return None if list(value) == sorted(set(value)) else "which does not rise"


def check_sha256(name: str, text: str) -> None:
    """Refuse a text that is no SHA-256.

    Raises:
        SchemaError: it is not 64 hex digits.
    """
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise SchemaError(f"{name} is not 64 hex digits")


class Record:
    """Base of the schema's frozen dataclasses."""

    unknown_keys_refused: ClassVar[bool] = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON with every field; tuples become lists, keys of objects become texts."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_json(cls: type[R], value: Any, where: str = "") -> R:
        """Read and check an object; `where` is its path for messages, for example "plan".

        Raises:
            SchemaError: it is no object, a key is missing or unknown, or a value is out of its bounds.
        """
        if not isinstance(value, dict):
            raise SchemaError(f"{where or 'the value'} is not an object")
        hints, found = _hints(cls), {}  # type: ignore[arg-type]
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            path = f"{where}.{field.name}".lstrip(".")
            if field.name in value:
                found[field.name] = read(hints[field.name], value[field.name], path)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise SchemaError(f"{path} is missing")
        if cls.unknown_keys_refused and (strange := sorted(set(value) - set(hints))):
            raise SchemaError(f"{where}.{_key_text(strange[0])} is not known".lstrip("."))
        try:
            return cls(**found)
        except SchemaError as error:  # of a __post_init__, which holds fields against each other
            raise SchemaError(f"{where}: {error}" if where else str(error)) from None


def read(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as a type of the schema.

    Raises:
        SchemaError: it is another one, or out of its bounds.
    """
    if get_origin(kind) is Annotated:
        base, *bounds = get_args(kind)
        found = read(base, value, where)
        for bound in bounds:
            if refusal := bound.refusal(found):
                raise SchemaError(f"{where} is {_short(value)}, {refusal}")
        return found
    arms = list(_arms(kind))
    fitting = [arm for arm in arms if _may_be(arm, value)]
    if not fitting:
        raise SchemaError(f"{where} is {_short(value)}, not {' or '.join(_name(arm) for arm in arms)}")
    return _read_one(fitting[0], value, where)


def _read_one(kind: Any, value: Any, where: str) -> Any:
    """A value of the right JSON type, and what is in it."""
    if get_origin(kind) is Annotated:
        return read(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        if arguments[-1] is not Ellipsis:
            if len(value) != len(arguments):
                raise SchemaError(f"{where} is {_short(value)}, which does not have {len(arguments)} entries")
            return tuple(read(k, v, f"{where}.{i}") for i, (k, v) in enumerate(zip(arguments, value, strict=True)))
        return tuple(read(arguments[0], v, f"{where}.{i}") for i, v in enumerate(value))
    if origin is dict:
        key_kind, value_kind = arguments
        return {_key(key_kind, k, where): read(value_kind, v, f"{where}.{_key_text(k)}") for k, v in value.items()}
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.from_json(value, where)
    if kind is float:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise SchemaError(f"{where} is {_short(value)}, not a finite number")
        return number
    return value


def _key(kind: Any, key: str, where: str) -> Any:
    """A key of an object; whole numbers are written as a person writes them, so that no two keys are the same one."""
    base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    number = base is int and key.isdecimal() and len(key) < 20 and str(int(key)) == key
    if base is int and not number:
        raise SchemaError(f"{where} has a key {_short(key)}, not a whole number")
    return read(kind, int(key) if number else key, f"a key of {where}")


def _arms(kind: Any) -> Iterator[Any]:
    """The members of a union, or the type itself."""
    if get_origin(kind) in (Union, types.UnionType):
        for arm in get_args(kind):
            yield from _arms(arm)
    else:
        yield kind


def _may_be(kind: Any, value: Any) -> bool:
    """Whether a value is of the JSON type that is read as `kind`."""
    if get_origin(kind) is Annotated:
        return _may_be(get_args(kind)[0], value)
    origin = get_origin(kind)
    if origin is tuple:
        return isinstance(value, list) and len(value) <= _MOST_ENTRIES
    if origin is dict or (isinstance(kind, type) and issubclass(kind, Record)):
        return isinstance(value, dict) and len(value) <= _MOST_ENTRIES
    if kind is float:
        return type(value) in (int, float)
    return kind is Any or type(value) is kind  # True is no whole number


def _name(kind: Any) -> str:
    """What a value should be, for messages."""
    if get_origin(kind) is Annotated:
        return _name(get_args(kind)[0])
    if get_origin(kind) is tuple:
        entries = {bool: "truth values", int: "integers", str: "names"}.get(_base(get_args(kind)[0]), "values")
        return f"a list of {entries}"
    if get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, Record)):
        return "an object"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", types.NoneType: "null"}
    return names[kind]


def _base(kind: Any) -> Any:
    return _base(get_args(kind)[0]) if get_origin(kind) is Annotated else kind


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


@functools.cache
def _hints(cls: type[Record]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]


def _key_text(key: str) -> str:
    return key if re.fullmatch(rf"[\w./-]{{1,{_SHOWN}}}", key, re.ASCII) else _short(key)


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else ascii(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
