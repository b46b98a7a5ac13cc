"""Places in plain JSON, for tests that change each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

JsonPath = tuple[str | int, ...]


def places(value: Any, path: JsonPath = ()) -> Iterator[JsonPath]:
    """Every key and list entry, inner ones too."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def at(value: Any, path: JsonPath) -> Any:
    """What stands at a place."""
    for key in path:
        value = value[key]
    return value
