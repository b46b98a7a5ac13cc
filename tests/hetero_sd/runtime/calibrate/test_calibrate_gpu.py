from __future__ import annotations

from typing import Any

import pytest

from hetero_sd.runtime.calibrate import bandwidths
from hetero_sd.runtime.calibrate.calibrate_gpu import GpuCosts

BYTES = 16 << 20


@pytest.fixture
def costs(opencl: Any, released: None) -> GpuCosts:
    import tvm

    return GpuCosts(tvm.device("opencl", 0), BYTES)


def test_the_kernel_reads_every_element(costs: GpuCosts) -> None:
    """The largest element of each work-item's part; one that was planted must show."""
    import numpy as np

    assert 0.01 < costs.gb_per_s() < 1e4
    assert set(costs._y.numpy()) == {1}
    x = np.ones(BYTES // 4, np.int32)
    x[[0, 123_457, len(x) - 1]] = 7
    costs._x.copyfrom(x)
    costs.gb_per_s()
    assert sorted(costs._y.numpy())[-4:] == [1, 7, 7, 7]


def test_launches(costs: GpuCosts) -> None:
    """A kernel in a queue that is not empty costs less than starting one and awaiting its end."""
    start_s, queued_s = costs.launches()
    assert 0 <= queued_s < start_s < 0.1


def test_hand_overs(costs: GpuCosts) -> None:
    found = costs.hand_overs()
    assert [f.bytes for f in found] == [4096, 262_144, 4_194_304]
    assert all(f.shared_s > 0 and f.copied_s > 0 for f in found)


def test_the_gpu_reads_alone_and_beside_each_cpu(costs: GpuCosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidths, "_WINDOW_S", 0.01)
    monkeypatch.setattr(bandwidths, "_REPEATS", 1)
    monkeypatch.setattr("targets.host.bandwidth._SMALLEST_BYTES", 1 << 20)
    found = bandwidths.measure_bandwidths(costs)
    groups = bandwidths.cpu_groups()
    assert [e.readers for e in found if "gpu" in e.readers] == [("gpu",), *((g, "gpu") for g in groups)]
    assert all(rate > 0 for e in found for rate in e.gb_per_s)
