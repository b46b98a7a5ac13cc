"""Reading JSON by the types and bounds of a record's fields."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import pytest

from costmodel.schema.record import Record, SchemaError, Within


@dataclass(frozen=True)
class Sample(Record):
    """Every kind of field."""

    number: Annotated[int, Within(1, 9)]
    share: Annotated[float, Within(0, 1)]
    times: dict[int, Annotated[float, Within(above=0)]]
    pair: tuple[int, int]
    reader: tuple[int, ...] | str
    later: str | None = None


SAMPLE = {"number": 3, "share": 1, "times": {"2": 0.5}, "pair": [1, 2], "reader": [0, 1]}


def test_values_become_python_values() -> None:
    found = Sample.from_json({**SAMPLE, "unknown": 1})
    assert found == Sample(3, 1.0, {2: 0.5}, (1, 2), (0, 1), None)
    assert type(found.share) is float
    assert Sample.from_json({**SAMPLE, "reader": "gpu", "later": "x"}) == replace(found, reader="gpu", later="x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": 0}, "s.number is 0, not a whole number from 1 to 9"),
        ({"number": True}, "s.number is True, not a whole number"),
        ({"number": 3.0}, "s.number is 3.0, not a whole number"),
        ({"number": "x" * 99}, "s.number is 'x.*\\.\\.\\., not a whole number"),
        ({"share": 1.5}, "s.share is 1.5, not a number from 0 to 1"),
        ({"share": 10**400}, "s.share is 1000.*, not a finite number"),
        ({"times": {"2": 0}}, "s.times.2 is 0, not a number above 0"),
        ({"times": {"02": 1.0}}, "s.times has a key '02', not a whole number"),
        ({"times": {"x": 1.0}}, "s.times has a key 'x', not a whole number"),
        ({"times": [1.0]}, r"s.times is \[1.0\], not an object"),
        ({"pair": [1]}, r"s.pair is \[1\], which does not have 2 entries"),
        ({"reader": 3}, "s.reader is 3, not a list of integers or a text"),
        ({"reader": [[]]}, r"s.reader.0 is \[\], not a whole number"),
        ({"later": 1}, "s.later is 1, not a text or null"),
    ],
)
def test_refusals_are_sentences(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SchemaError, match=f"^{message}"):
        Sample.from_json({**SAMPLE, **change}, "s")
