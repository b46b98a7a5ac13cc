from __future__ import annotations

import pytest

from costmodel.place import Part, Place
from costmodel.schema.record import SchemaError


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [
        ("", "ffn", "ffn"),
        ("", "attention", "attention"),
        ("", "ffn", "3"),
        ("", "3", "attention"),
        ("ffn", "3", "3"),
        ("", "3", ""),
        ("", "", "3"),
        ("", "1-2", "1-2"),
        ("", "\u0663", "\u0663"),  # a digit of another script
        ("", "1" * 5000, "1" * 5000),  # Python makes no number of it
    ],
)
def test_a_range_has_units_at_both_ends(kind: str, first: str, last: str) -> None:
    with pytest.raises(SchemaError, match=r"is no place$"):
        Place("gpu", kind, first, last)
    data = {"processor": "gpu", "kind": kind, "first": first, "last": last}
    with pytest.raises(SchemaError, match=r"is no place$"):
        Place.from_json(data)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("gpu:ffn", Place("gpu", "ffn")),
        ("gpu:attention", Place("gpu", "attention")),
        ("gpu:embedding-3", Place("gpu", "", "embedding", "3")),
        ("gpu:3-head", Place("gpu", "", "3", "head")),
        ("gpu:3", Place("gpu", "", "3", "3")),
    ],
)
def test_what_parse_reads_answers_for_every_part(rule: str, expected: Place) -> None:
    place = Place.parse(rule)
    assert place == expected == Place.from_json(expected.to_json())
    parts = [Part("embedding"), Part("attention", 3), Part("ffn", 3), Part("head")]
    assert {place.of(part, 4) for part in parts} == {"cpu", "gpu"}


@pytest.mark.parametrize("rule", ["gpu:ffn-3", "gpu:3-attention", "gpu:ffn-ffn", "gpu:" + "1" * 5000, "gpu:\u0663"])
def test_a_rule_that_parse_does_not_read(rule: str) -> None:
    with pytest.raises(ValueError, match=r"is no place$"):
        Place.parse(rule)
