"""What kernels get from memory and caches."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from costmodel.cpu_reads import reached_gb_per_s, resident_share
from costmodel.factors import Factors


def test_resident_share() -> None:
    """What is found again leaves just the misses that replace the rest: h = exp(-(1 - h) size / capacity)."""
    shares = [resident_share(size, 100.0) for size in (50, 100, 150, 200, 400, 1e6)]
    assert shares == pytest.approx([1.0, 1.0, 0.4172, 0.2032, 0.0198, 0.0], abs=5e-5)
    for size in (101.0, 130.0, 170.0, 250.0, 1000.0):
        found = resident_share(size, 100.0)
        assert found == pytest.approx(math.exp(-(1 - found) * size / 100.0), abs=1e-5)
        assert found < 100.0 / size  # no more than the cache holds
    assert resident_share(1.0, 0.0) == 0.0


def walked_again(lines: int, places: int, steps: int, insert: float) -> float:
    """Share of a cyclic walk that a cache finds in its later steps.

    A new line takes the place of the one that was used longest ago with the probability `insert`, else it passes by.
    """
    lot, held, found = random.Random(3), dict[int, None](), 0  # in the order in which they go
    for step in range(steps):
        for line in range(lines):
            if line in held:
                found += step >= steps // 2
                del held[line]
            elif len(held) == places and lot.random() >= insert:
                continue
            elif len(held) == places:
                del held[next(iter(held))]
            held[line] = None
    return found / (lines * (steps - steps // 2))


def test_caches_that_insert_rarely_keep_a_part_of_any_walk() -> None:
    """Simulated: they find capacity / size again, where replacing what was used longest ago finds nothing."""
    for lines in (150, 300, 600):
        assert walked_again(lines, 100, 20, 1 / 1024) == pytest.approx(resident_share(lines, 1.0, 100.0), rel=0.15)
        assert walked_again(lines, 100, 20, 1.0) == 0.0  # the control
    assert resident_share(120.0, 100.0, 30.0) == resident_share(120.0, 100.0)  # replacement at random leaves more
    assert resident_share(600.0, 100.0, 30.0) == pytest.approx(30 / 600)
    assert resident_share(20.0, 0.0, 30.0) == 1.0


@pytest.mark.parametrize(("rate", "share"), [("read", 0.93), ("copy", 1.34 * 0.93), ("decoder", 1.0)])
def test_each_bandwidth_is_discounted_once(imx95: Any, rate: str, share: float) -> None:
    (a55,) = imx95.clusters
    stated = replace(a55, bandwidth_by_threads_gb_per_s=(6.0,) * 6, bandwidth_by_threads_rate=rate)
    assert reached_gb_per_s(Factors(), stated, 4) == pytest.approx(share * 6.0)
    worse = Factors(bandwidth=0.93 / 2)  # what a calibration finds halves all of them
    assert reached_gb_per_s(worse, stated, 4) == pytest.approx(share * 3.0)
