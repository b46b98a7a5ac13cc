"""Taking slots and giving them back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hetero_sd.runtime.model.slot_pool import SlotPool


def pool(slots: int) -> SlotPool:
    model: Any = SimpleNamespace(slots=slots, slot=lambda number: f"model {number}")
    return SlotPool(model)


def test_a_slot_is_had_by_one() -> None:
    slots = pool(3)
    taken = [slots.take([1, 2]) for _ in range(3)]
    assert {slot.number for slot in taken} == {0, 1, 2}
    assert [slot.model for slot in sorted(taken, key=lambda slot: slot.number)] == ["model 0", "model 1", "model 2"]
    assert slots.free == 0
    slots.give_back(taken[1])
    assert slots.free == 1
    assert slots.take([5]) is taken[1]


def test_the_slot_that_holds_most_is_taken_and_else_the_one_that_loses_least() -> None:
    slots = pool(3)
    for slot, tokens in zip(slots.every, ([1, 2, 3, 4], [1, 2, 9], [7]), strict=True):
        slot.tokens = tokens
    assert slots.kept_rows == 8
    first = slots.take([1, 2, 3, 8])
    assert (first.number, first.tokens) == (0, [1, 2, 3])
    second = slots.take([5, 5])
    assert (second.number, second.tokens) == (2, [])
    slots.give_back(first)
    again = slots.take([1, 2, 3])  # the last token of a text is fed again, for what follows it
    assert (again.number, again.tokens) == (0, [1, 2])
