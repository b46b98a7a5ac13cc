"""Which entry points feed a text; that they have the same bits is tested in test_slots.py."""

from __future__ import annotations

import pytest

from hetero_sd.runtime.model.steps import Steps

CONTEXT = 100


def entries(tokens: int, pos: int = 0, last: bool = True, fills: bool = False) -> list[str]:
    calls = Steps("target", (1, 4), (8, 32), CONTEXT).plan([1] * tokens, pos, last, fills=fills)
    assert [call.pos for call in calls] == [pos + sum(len(c.ids) for c in calls[:i]) for i in range(len(calls))]
    assert sum(len(call.ids) for call in calls) == tokens
    assert all(call.pos + call.width <= CONTEXT for call in calls)
    assert all(call.fills == call.entry.startswith("fill_") for call in calls)
    assert [call.row for call in calls if call.row is not None] == (
        [len(calls[-1].ids) - 1] if calls[-1].entry.startswith("prefill_") else []
    )
    return [call.entry for call in calls]


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        (1, ["step_1"]),
        (3, ["step_4"]),
        (5, ["prefill_8"]),
        (11, ["fill_8", "step_4"]),
        (24, ["fill_8", "fill_8", "prefill_8"]),
        (25, ["prefill_32"]),
        (33, ["fill_32", "step_1"]),
        (77, ["fill_32", "fill_32", "fill_8", "prefill_8"]),
    ],
)
def test_all_chunks_but_the_last_fill_the_cache(tokens: int, found: list[str]) -> None:
    assert entries(tokens) == found


def test_where_no_row_is_wanted_nothing_but_a_rest_has_results() -> None:
    assert entries(40, fills=True) == ["fill_32", "fill_8"]
    assert entries(38, last=False, fills=True) == ["fill_32", "fill_8"]
    assert entries(35, fills=True) == ["fill_32", "step_4"]
    assert entries(9, last=False) == ["step_4", "step_4", "step_1"]  # every row is wanted


def test_padding_does_not_leave_the_context() -> None:
    assert entries(30, pos=68) == ["prefill_32"]
    assert entries(30, pos=70) == ["fill_8", "fill_8", "fill_8", "step_4", "step_1", "step_1"]
    assert entries(28, pos=72) == ["fill_8", "fill_8", "fill_8", "step_4"]
    assert entries(6, pos=94) == ["step_4", "step_1", "step_1"]
