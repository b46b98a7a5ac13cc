from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from hetero_sd.runtime.calibrate import bandwidths, calibrate_gpu
from hetero_sd.runtime.calibrate.calibrate_gpu import GpuCosts

BYTES = 16 << 20


@pytest.fixture
def costs(opencl: Any, released: None) -> GpuCosts:
    import tvm

    return GpuCosts(tvm.device("opencl", 0), BYTES)


class Clock:
    """Stands still but for what a test says that actions take."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(calibrate_gpu, "time", SimpleNamespace(perf_counter=lambda: self.now_s))

    def taking(self, seconds: float, action: Callable[..., Any], late_every: int = 0) -> Callable[..., Any]:
        """The action, which takes so long; every so many calls a second more."""
        calls = 0

        def timed(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            self.now_s += seconds + (1.0 if late_every and calls % late_every == 0 else 0.0)
            return action(*arguments)

        return timed


def test_the_kernel_reads_every_element(costs: GpuCosts) -> None:
    """The largest element of each work-item's part; one that was planted must show."""
    import numpy as np

    costs.gb_per_s()
    assert set(costs._y.numpy()) == {1}
    x = np.ones(BYTES // 4, np.int32)
    x[[0, 123_457, len(x) - 1]] = 7
    costs._x.copyfrom(x)
    costs.gb_per_s()
    assert sorted(costs._y.numpy())[-4:] == [1, 7, 7, 7]


@pytest.mark.parametrize(("launch_s", "wait_s"), [(5e-6, 60e-6), (20e-6, 0.0), (0.0, 1e-3)])
def test_launches(costs: GpuCosts, monkeypatch: pytest.MonkeyPatch, launch_s: float, wait_s: float) -> None:
    """One launch and the wait for its end; one more launch without a wait. A few late ends change neither."""
    clock, device = Clock(monkeypatch), costs._device
    monkeypatch.setattr(costs, "_empty", clock.taking(launch_s, costs._empty))
    monkeypatch.setattr(costs, "_device", SimpleNamespace(sync=clock.taking(wait_s, device.sync, late_every=7)))
    assert costs.launches() == pytest.approx((launch_s + wait_s, launch_s), abs=1e-12)


def test_the_rate_counts_all_bytes_once(costs: GpuCosts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was enqueued before is not timed."""
    clock, device = Clock(monkeypatch), costs._device
    monkeypatch.setattr(costs, "_device", SimpleNamespace(sync=clock.taking(BYTES / 8e9, device.sync)))
    assert costs.gb_per_s() == pytest.approx(8.0)


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
