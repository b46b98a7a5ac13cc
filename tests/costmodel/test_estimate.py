from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.estimate import Estimate, seconds, total

part = st.floats(0, 10, allow_subnormal=False)
estimates = st.builds(Estimate, part, part, part, part, part)


@given(estimates, estimates)
def test_parts_add_and_the_total_is_their_sum(a: Estimate, b: Estimate) -> None:
    both = a + b
    assert both.memory_s == a.memory_s + b.memory_s
    assert both.total_s == pytest.approx(a.total_s + b.total_s)
    assert all(both.total_s >= p for p in (*a.parts().values(), *b.parts().values()))
    assert total([a, b]) == both


def test_times() -> None:
    assert (3 * Estimate(1.0, 2.0)).total_s == 9.0


def test_explains_itself_largest_part_first() -> None:
    text = Estimate(compute_s=0.001, memory_s=0.008, launch_s=0.001, dispatch_s=1e-6).explain()
    assert text == "10 ms: memory 80 %, compute 10 %, launch 10 %"
    assert Estimate().explain() == "0 s"


def test_durations_for_people() -> None:
    assert [seconds(s) for s in (4.12e-4, 0.0123, 1.024, 0.9999)] == ["412 us", "12.3 ms", "1.02 s", "1 s"]
