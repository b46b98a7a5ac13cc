"""What kernels get from memory and caches."""

from __future__ import annotations

import math
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


@pytest.mark.parametrize(("rate", "share"), [("read", 0.93), ("copy", 1.34 * 0.93), ("decoder", 1.0)])
def test_each_bandwidth_is_discounted_once(imx95: Any, rate: str, share: float) -> None:
    (a55,) = imx95.clusters
    stated = replace(a55, bandwidth_by_threads_gb_per_s=(6.0,) * 6, bandwidth_by_threads_rate=rate)
    assert reached_gb_per_s(Factors(), stated, 4) == pytest.approx(share * 6.0)
    worse = Factors(bandwidth=0.93 / 2)  # what a calibration finds halves all of them
    assert reached_gb_per_s(worse, stated, 4) == pytest.approx(share * 3.0)
