"""Checks of single JSON values: each returns the value, or raises ValueError with what it should be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

MOST_STOPS = 4  # as in OpenAI's


def text(value: Any) -> str:
    """A string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise ValueError("a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("valid Unicode text") from None
    return value


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def json_object(value: Any) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise ValueError("an object")
    return value


def whole(least: int, most: int) -> Callable[[Any], int]:
    """Whole numbers in a range; true and false are none."""

    def check(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value

    return check


def real(least: float, most: float) -> Callable[[Any], float]:
    """Finite numbers in a range."""

    def check(value: Any) -> float:
        if type(value) not in (int, float) or not least <= value <= most or not math.isfinite(value):
            raise ValueError(f"a number from {least:g} to {most:g}")
        return float(value)

    return check


def share(value: Any) -> float:
    """A number in (0, 1]."""
    if type(value) not in (int, float) or not 0 < value <= 1:
        raise ValueError("a number above 0 and at most 1")
    return float(value)


def stops(value: Any) -> list[str]:
    """One text or a few, none of them empty."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > MOST_STOPS or not all(isinstance(s, str) and s for s in found):
        raise ValueError(f"a text or a list of at most {MOST_STOPS}, none of them empty")
    return [text(one) for one in found]
