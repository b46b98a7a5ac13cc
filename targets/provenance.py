"""Tables of facts: how a board or core file becomes a dataclass, and why it is refused when it does not.

A fact is a table with three keys, ``{ value = 2.4, kind = "datasheet", source = "where it stands" }``, the same in
TOML and in JSON; a fourth, ``range = [2.0, 2.6]``, says how far the number may be off. Each dataclass of
``targets.device`` says with ``within(low, high)`` or ``one_of(...)`` what its facts may be.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from targets.errors import UserError

KINDS = ("datasheet", "measured", "assumed")
LONGEST_TEXT = 2000  # characters; a source is a sentence or two, so more is not a board file
LONGEST_LIST = 1024  # entries, of cpu ids and of compiler features
_UNIT_HINTS = (("_ghz", "GHz"), ("_gb_per_s", "GB/s (1e9 bytes a second)"), ("_bytes", "bytes"), ("_s", "seconds"))

T = TypeVar("T")


@dataclass(frozen=True)
class Provenance:
    """Where a number comes from.

    Attributes:
        kind: ``datasheet`` (published by its maker), ``measured`` (on such a board, by the one named) or ``assumed``.
        source: the publication, the measurement, or the reasoning behind the assumption.
        range: the least and the most that the number may be, where that is stated.
    """

    kind: str
    source: str
    range: tuple[float, float] | None = None

    def to_json(self, value: object) -> dict[str, Any]:
        """The fact with that value, as `read_table` reads it."""
        fact = {"value": value, "kind": self.kind, "source": self.source}
        return fact if self.range is None else {**fact, "range": list(self.range)}


def within(low: float, high: float) -> dict[str, Any]:
    """Field metadata: a fact whose number, or each number of a list, lies in [low, high]."""
    return {"fact": True, "low": low, "high": high}


def one_of(*choices: str) -> dict[str, Any]:
    """Field metadata: a fact whose text is one of the choices (any text when none is given)."""
    return {"fact": True, "choices": choices}


def label(*choices: str) -> dict[str, Any]:
    """Field metadata: a plain text without provenance, such as a name."""
    return {"fact": False, "choices": choices}


def read_table(
    cls: type[T],
    table: object,
    path: str,
    where: str,
    provenance: dict[str, Provenance],
    given: Mapping[str, object] | None = None,
) -> T:
    """Make one dataclass from a table of facts and labels.

    Args:
        cls: the dataclass; fields without fact or label metadata must be in ``given``.
        table: what the file holds at ``path``.
        path: dotted path of the table, for messages and as key prefix in ``provenance``.
        where: the file or the origin named in messages.
        provenance: receives ``path.field`` for each fact.
        given: fields read by the caller.

    Raises:
        UserError: unknown key, missing key without a default, wrong type, value out of range, kind or source missing.
    """
    table = expect_table(table, path, where)
    given = dict(given or {})
    fields = [f for f in dataclasses.fields(cls) if "fact" in f.metadata]  # type: ignore[arg-type]
    refuse_unknown(table, [f.name for f in fields] + list(given), path, where)
    hints = typing.get_type_hints(cls)
    values: dict[str, object] = dict(given)
    for field in fields:
        here = f"{path}.{field.name}" if path else field.name
        if field.name not in table:
            if field.default is not dataclasses.MISSING:
                continue
            raise UserError(
                f'{where}: {here} is missing; a board has every number, with kind = "assumed" if nobody measured it'
            )
        entry = table[field.name]
        if field.metadata["fact"]:
            entry, provenance[here] = _read_fact(entry, here, where)
        values[field.name] = _checked(entry, hints[field.name], field.metadata, here, where)
    return cls(**values)


def read_numbers(
    table: object, path: str, where: str, provenance: dict[str, Provenance], low: float, high: float
) -> dict[str, float]:
    """Facts under names that the caller knows, each a number in [low, high].

    Raises:
        UserError: not a table, a name that is no identifier, or a value that is no such number.
    """
    numbers: dict[str, float] = {}
    for name, entry in expect_table(table, path, where).items():
        here = f"{path}.{name}"
        if not name.isidentifier() or len(numbers) >= LONGEST_LIST:
            raise UserError(f"{where}: {path} has the name {short(name)}; a name is letters, digits and underscores")
        value, provenance[here] = _read_fact(entry, here, where)
        checked = _scalar(value, float, within(low, high), here, where)
        assert isinstance(checked, float)
        numbers[name] = checked
    return numbers


def write_table(item: object, path: str, provenance: Mapping[str, Provenance]) -> dict[str, Any]:
    """The table that ``read_table`` would read back; tuples become lists, so that it is plain JSON."""
    table: dict[str, Any] = {}
    for field in dataclasses.fields(item):  # type: ignore[arg-type]
        if "fact" not in field.metadata:
            continue
        value = getattr(item, field.name)
        stated = f"{path}.{field.name}" in provenance if field.metadata["fact"] else value != field.default
        if field.default is not dataclasses.MISSING and not stated:
            continue
        value = list(value) if isinstance(value, tuple) else value
        if field.metadata["fact"]:
            table[field.name] = provenance[f"{path}.{field.name}"].to_json(value)
        else:
            table[field.name] = value
    return table


def expect_table(table: object, path: str, where: str) -> dict[str, Any]:
    """The table at ``path``, or a UserError when something else stands there."""
    if not isinstance(table, dict):
        raise UserError(f"{where}: {path or 'the file'} must be a table, not {_type_name(table)}")
    return table


def refuse_unknown(table: Mapping[str, Any], known: Iterable[str], path: str, where: str) -> None:
    """Raise UserError for the first key that no field has, with the nearest one that exists."""
    known = list(known)
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise UserError(f"{where}: unknown key {short(key)} in {path or 'the file'}; {hint}")


def short(value: object) -> str:
    """A value as it may stand in a one-line message."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."


def _read_fact(entry: object, here: str, where: str) -> tuple[object, Provenance]:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: {here} must be {{ value = ..., kind = ..., source = ... }}, not {short(entry)}")
    refuse_unknown(entry, ("value", "kind", "source", "range"), here, where)
    for key in ("value", "kind", "source"):
        if key not in entry:
            raise UserError(f"{where}: {here} lacks {key!r}; a number stands with value, kind and source")
    kind, source = entry["kind"], entry["source"]
    if kind not in KINDS:
        raise UserError(f"{where}: {here}: kind {short(kind)} is not one of {', '.join(KINDS)}")
    if not isinstance(source, str) or not source.strip() or len(source) > LONGEST_TEXT or "\n" in source:
        raise UserError(f"{where}: {here}: source must be one line of text that says where the number comes from")
    ends = _read_range(entry["range"], entry["value"], here, where) if "range" in entry else None
    return entry["value"], Provenance(str(kind), source, ends)


def _read_range(ends: object, value: object, here: str, where: str) -> tuple[float, float]:
    numbers = [value, *ends] if isinstance(ends, list) and len(ends) == 2 else [None]
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in numbers):
        raise UserError(f"{where}: {here}: range must be two numbers, the least and the most that the number may be")
    number, low, high = (float(str(x)) for x in numbers)
    if not 0 < low <= number <= high < math.inf:
        raise UserError(f"{where}: {here}: range {low:g} to {high:g} must be above 0 and hold the value {number:g}")
    return low, high


def _checked(value: object, hint: Any, metadata: Mapping[str, Any], here: str, where: str) -> object:
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list) or len(value) > LONGEST_LIST:
            raise UserError(f"{where}: {here} must be a list of at most {LONGEST_LIST} entries, not {short(value)}")
        return tuple(_scalar(entry, typing.get_args(hint)[0], metadata, here, where) for entry in value)
    return _scalar(value, hint, metadata, here, where)


def _scalar(value: object, hint: Any, metadata: Mapping[str, Any], here: str, where: str) -> object:
    """One value of type bool, int, float or str, with its range or its choices."""
    if hint is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            value = math.inf if value > 0 else -math.inf
    if type(value) is not hint:
        raise UserError(f"{where}: {here} must be {_type_name(hint())}, not {short(value)}")
    if isinstance(value, str):
        choices = metadata.get("choices", ())
        if choices and value not in choices:
            raise UserError(f"{where}: {here} is {short(value)}; it must be one of {', '.join(choices)}")
        if not value.strip() or len(value) > LONGEST_TEXT or "\n" in value:
            raise UserError(f"{where}: {here} must be one line of text")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = metadata["low"], metadata["high"]
        if not low <= value <= high:  # nan lies nowhere
            unit = next((f" in {unit}" for suffix, unit in _UNIT_HINTS if here.endswith(suffix)), "")
            raise UserError(f"{where}: {here} is {short(value)}; it must lie between {low:g} and {high:g}{unit}")
    return value


def _type_name(value: object) -> str:
    names = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "a table",
    }
    return names.get(type(value), type(value).__name__)
