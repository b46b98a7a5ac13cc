from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.contention import Load, side_by_side, slowdowns, together_bytes_per_s
from costmodel.cpu_reads import reached_gb_per_s
from costmodel.factors import Factors

times = st.floats(0.01, 10)
loads = st.builds(lambda t, m, rate: Load(t, m * t, rate * t), times, st.floats(0, 1), st.floats(0, 3e10))


def test_by_hand() -> None:
    # both wait for memory only, 10 GB/s each, 15 GB/s together: both take 4/3 as long
    a = b = Load(3.0, 3.0, 30e9)
    assert slowdowns(a, b, 15e9) == pytest.approx((4 / 3, 4 / 3))
    assert side_by_side(a, b, 15e9) == pytest.approx((4.0, 4.0))


def test_the_longer_one_goes_on_alone() -> None:
    short, long = Load(3.0, 3.0, 30e9), Load(6.0, 6.0, 60e9)
    # 4 s together, in which the long one does 3 s of its work; 3 s are left at full speed
    assert side_by_side(short, long, 15e9) == pytest.approx((4.0, 7.0))
    assert side_by_side(long, short, 15e9) == pytest.approx((7.0, 4.0))


def test_arithmetic_is_not_slowed() -> None:
    busy, reader = Load(3.0, 0.0, 3e9), Load(3.0, 3.0, 60e9)
    assert side_by_side(busy, reader, 10.5e9)[0] == pytest.approx(3.0)


def test_hidden_traffic_is_traffic() -> None:
    """Arithmetic hides 1 GB/s of one and nothing of the other: the reader gets the 9.5 GB/s that are left of 10.5."""
    busy, reader = Load(3.0, 0.0, 3e9), Load(3.0, 3.0, 60e9)
    slow_busy, slow_reader = slowdowns(busy, reader, 10.5e9)
    assert slow_busy == pytest.approx(1.0)
    assert 20e9 / slow_reader == pytest.approx(9.5e9)
    both = Load(3.0, 0.0, 30e9)  # both hide all of it: neither waits, so both are slowed alike
    assert slowdowns(both, both, 15e9) == pytest.approx((4 / 3, 4 / 3))


def test_demands_of_hundreds_of_limits() -> None:
    busy, reader = Load(1.0, 0.1, 150e9), Load(1.0, 1.0, 50e9)
    slow_busy, slow_reader = slowdowns(busy, reader, 1e9)
    assert 150 / slow_busy + 50 / slow_reader == pytest.approx(1.0)
    assert slow_busy == pytest.approx(1 + 0.1 * (slow_reader - 1))


@given(loads, loads, st.floats(1e9, 1e11))
def test_two_never_move_more_than_the_limit(a: Load, b: Load, limit: float) -> None:
    slow_a, slow_b = slowdowns(a, b, limit)
    assert a.demand_bytes_per_s / slow_a + b.demand_bytes_per_s / slow_b <= limit * (1 + 1e-9)
    naive = max(1.0, (a.demand_bytes_per_s + b.demand_bytes_per_s) / limit)
    for load, slow in ((a, slow_a), (b, slow_b)):
        assert slow >= (1.0 + (naive - 1.0) * load.memory_s / load.total_s) * (1 - 1e-9)


@given(loads, loads, st.floats(1e9, 1e11))
def test_never_faster_than_alone_never_slower_than_one_after_the_other_when_memory_allows(
    a: Load, b: Load, limit: float
) -> None:
    end_a, end_b = side_by_side(a, b, limit)
    assert end_a >= a.total_s * (1 - 1e-9)
    assert end_b >= b.total_s * (1 - 1e-9)
    if a.demand_bytes_per_s + b.demand_bytes_per_s <= limit:
        assert (end_a, end_b) == pytest.approx((a.total_s, b.total_s))


def test_limits_of_a_board(rk3588: Any) -> None:
    factors = Factors(dram_together=0.8)
    assert together_bytes_per_s(rk3588, factors) == pytest.approx(0.8 * 33.8e9)
    slow = replace(rk3588, dram=replace(rk3588.dram, peak_bandwidth_gb_per_s=26.0))
    assert together_bytes_per_s(slow, factors) == pytest.approx(24.9e9)  # what the GPU reads alone
    assert together_bytes_per_s(rk3588, factors, rk3588.clusters[0]) == pytest.approx(14.5e9)  # a decoder's rate
    little = rk3588.clusters[1]
    assert together_bytes_per_s(rk3588, factors, little) == pytest.approx(0.93 * 10e9)  # a read


@pytest.mark.parametrize("rate", ["copy", "read"])
def test_the_limit_is_not_below_what_a_cluster_reads_alone(rk3588: Any, rate: str) -> None:
    """Four A76 that copy 24 GB/s read 1.34 times as much, of which kernels reach 93 %: more than 0.8 x 30 GB/s."""
    a76 = replace(rk3588.clusters[0], bandwidth_all_threads_gb_per_s=24.0, bandwidth_all_threads_rate=rate)
    dram = replace(rk3588.dram, peak_bandwidth_gb_per_s=30.0)
    board, factors = replace(rk3588, clusters=(a76,), gpu=None, dram=dram), Factors(dram_together=0.8)
    alone = max(reached_gb_per_s(factors, a76, threads) for threads in range(1, 5))
    assert alone == pytest.approx({"copy": 1.34 * 0.93 * 24, "read": 0.93 * 24}[rate])
    limit = together_bytes_per_s(board, factors)
    assert limit == pytest.approx(max(1e9 * alone, 0.8 * 30e9))
    assert limit > 24e9 if rate == "copy" else limit == pytest.approx(24e9)


def test_reads_that_fall_with_threads_count_at_their_most(rk3588: Any) -> None:
    """By threads, as copies: two threads read more alone than four, and more than the share of the peak."""
    by_threads = {"bandwidth_by_threads_gb_per_s": (12.0, 20.0, 16.0, 12.0), "bandwidth_by_threads_rate": "copy"}
    a76 = replace(rk3588.clusters[0], **by_threads)
    dram = replace(rk3588.dram, peak_bandwidth_gb_per_s=25.0)
    limit = together_bytes_per_s(replace(rk3588, clusters=(a76,), gpu=None, dram=dram), Factors(dram_together=0.8))
    assert limit == pytest.approx(1.34 * 0.93 * 20e9)
