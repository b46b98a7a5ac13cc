from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetero_sd.runtime import calibrate as C
from hetero_sd.runtime.interface import Models
from targets.errors import UserError


class Still:
    """A model whose steps take no time worth measuring; it keeps what it was asked."""

    name, vocab, context, widths = "target", 8, 64, (1, 4)

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def argmax(self, ids: Any, pos: int) -> Any:
        assert pos + len(ids) <= self.context
        self.asked.append((len(ids), pos))
        return np.zeros(len(ids), np.int64)

    def extend(self, ids: Any, pos: int) -> int:
        self.asked.append((len(ids), pos))
        return 0


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(C, "_BANDWIDTH_BYTES", 1 << 16)


def test_every_width_at_every_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    model, notes = Still(), []
    result = C.calibrate(Models(model), 2, 0.0, tmp_path / "m.json", notes.append)
    assert json.loads((tmp_path / "m.json").read_text()) == result
    points = [(p["n"], p["past"]) for p in result["points"]]
    assert points == [(n, past) for past in (15, 16, 30, 60) for n in (1, 4)]
    assert all(p["samples"] >= C.LEAST_REPEATS and p["low"] <= p["seconds"] <= p["high"] for p in result["points"])
    assert model.asked[0] == (60, 0)  # the caches are filled first
    assert result["passes"] == len(notes) == C.LEAST_REPEATS
    assert result["bandwidth_gb_per_s"] > 0


def test_samples_with_unsteady_bandwidth_are_left_out() -> None:
    step = {"model": "target", "n": 1, "past": 0}
    steady = [(1.0, 10.0, 10.0)] * 5
    found = C._point(step, [*steady, (9.0, 10.0, 3.0)])
    assert (found["seconds"], found["samples"], found["stable"]) == (1.0, 5, True)
    assert not C._point(step, [(1.0, 10.0, 5.0)] * 6)["stable"]


def test_state_of_the_machine(tmp_path: Path) -> None:
    cpu = tmp_path / "sys/devices/system/cpu/cpu0/cpufreq"
    cpu.mkdir(parents=True)
    (cpu / "scaling_governor").write_text("schedutil\n")
    (cpu / "scaling_cur_freq").write_text("1800000\n")
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("61500\n")
    state = C.machine_state(tmp_path)
    assert state == {"cpus": {"cpu0": {"governor": "schedutil", "mhz": 1800}}, "hottest_celsius": 61.5}
    cooler = {"cpus": {"cpu0": {"governor": "schedutil", "mhz": 1500}}}
    assert C.throttled({"machine": {"before": state, "after": cooler}})
    assert not C.throttled({"machine": {"before": state, "after": state}})


def test_an_unwritable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    with pytest.raises(UserError, match="cannot be written"):
        C.calibrate(Models(Still()), 1, 0.0, tmp_path / "missing" / "m.json", lambda line: None)
