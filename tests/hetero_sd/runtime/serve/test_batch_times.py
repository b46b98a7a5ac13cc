"""Times of calls: the plan's, corrected by those that were seen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from costmodel.schema.batch import BatchPrediction
from hetero_sd.runtime.serve.batch_times import BatchTimes, calls_of

CALLS = BatchPrediction({1: (2.0, 0.01), 2: (2.2, 0.01), 8: (3.0, 0.01)}, {8: (3.0, 0.0), 32: (6.0, 0.02)})


def test_what_was_not_seen_is_off_by_as_much_as_its_kind() -> None:
    times = BatchTimes(CALLS)
    assert times.rows_s(8) == 3.0
    assert times.observe_rows(1, 100, 6.0) == 3.0  # predicted; it took twice as long
    assert (times.rows_s(1), times.rows_s(8), times.rows_s(9)) == (4.0, 6.0, 10.0)
    assert times.read_s(32, 100) == 16.0  # nothing was read yet
    times.past = 50.0
    assert times.rows_s(2) == pytest.approx(2 * (2.2 + 0.01 * 2 * 50))
    for _ in range(9):
        times.observe_read(32, 100, 8.0)
    assert times.read_s(32, 200) == pytest.approx(10.0)
    assert times.read_s(5, 0) == pytest.approx(3.0)
    assert times.rows_s(1) == 5.0  # the other kind is as it was


def test_a_pause_of_the_system_changes_nothing() -> None:
    times = BatchTimes(CALLS)
    for took in (2.0, 2.0, 50.0, 2.0, 2.0, 2.0, 2.0, 2.0):
        times.observe_rows(1, 0, took)
    assert times.rows_s(1) == 2.0
    for _ in range(31):
        times.observe_rows(1, 0, 4.0)
    assert times.rows_s(1) == 4.0  # the negative control: a lasting change does


def test_calls_that_the_plan_does_not_have_are_expected_to_take_equally_long() -> None:
    slots: Any = SimpleNamespace(row_widths=(1, 2, 8), read_widths=(8, 32), prefill_widths=(32,))
    assert calls_of(slots, CALLS) is CALLS
    other: Any = SimpleNamespace(row_widths=(1, 2, 4), read_widths=(8, 32), prefill_widths=(32,))
    times = BatchTimes(calls_of(other, CALLS))
    times.observe_rows(1, 10, 0.25)
    times.observe_read(32, 10, 0.5)
    assert (times.rows_s(1), times.rows_s(4), times.read_s(8, 0)) == (0.25, 0.25, 0.5)
    assert calls_of(other, None).row_calls == {1: (1.0, 0.0), 2: (1.0, 0.0), 4: (1.0, 0.0)}
