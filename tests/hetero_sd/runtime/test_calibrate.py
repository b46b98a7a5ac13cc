from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetero_sd.runtime import calibrate as C
from hetero_sd.runtime import contention, measure
from hetero_sd.runtime.interface import Models
from targets.errors import UserError


class Still:
    """A model whose steps take no time worth measuring; it keeps what it was asked."""

    name, vocab, context, widths, prefill_width = "target", 8, 64, (1, 4), 16

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
    monkeypatch.setattr(measure, "_BANDWIDTH_BYTES", 1 << 16)
    monkeypatch.setattr(measure, "_SHORTEST_S", 1e-5)
    monkeypatch.setattr(contention, "_WINDOW_S", 0.001)


def test_every_width_at_every_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    model, notes = Still(), []
    result = C.calibrate(Models(model), 2, 0.0, tmp_path / "m.json", notes.append)
    assert json.loads((tmp_path / "m.json").read_text()) == result
    points = [(p["n"], p["past"]) for p in result["points"] if not p["chunk"]]
    assert points == [(n, past) for past in (15, 16, 30, 60) for n in (1, 4)]
    assert [(p["n"], p["past"]) for p in result["points"] if p["chunk"] == 16] == [(16, 0), (16, 16), (32, 0), (32, 16)]
    assert all(p["samples"] >= C.LEAST_REPEATS and p["low"] <= p["seconds"] <= p["high"] for p in result["points"])
    assert all(p["processor"] == "cpu" for p in result["points"])
    assert model.asked[0] == (60, 0)  # the caches are filled first
    assert result["passes"] == C.LEAST_REPEATS == sum(note.startswith("pass") for note in notes)
    assert result["bandwidth_gb_per_s"] > 0
    assert result["gpu"] is None
    alone = [entry for entry in result["bandwidths"] if len(entry["readers"]) == 1]
    assert all(rate > 0 for entry in result["bandwidths"] for rate in entry["gb_per_s"])
    assert len(result["bandwidths"]) == len(alone) + len(alone) * (len(alone) - 1) // 2  # and every pair


def stepped(samples: list[tuple[float, float, float]]) -> measure.Step:
    return measure.Step({"n": 1}, int, samples)


def test_samples_with_unsteady_bandwidth_are_left_out() -> None:
    steady = [(1.0, 10.0, 10.0)] * 5
    found = stepped([*steady, (9.0, 10.0, 3.0)]).point()
    assert (found["n"], found["seconds"], found["samples"], found["stable"]) == (1, 1.0, 5, True)
    assert not stepped([(1.0, 10.0, 5.0)] * 6).point()["stable"]
    assert not stepped(steady).point(least=6)["stable"]


def test_samples_that_disagree_are_unstable() -> None:
    assert not stepped([(t, 10.0, 10.0) for t in (1.0, 1.0, 1.0, 1.3, 1.3, 1.3)]).point()["stable"]
    assert stepped([(t, 10.0, 10.0) for t in (1.0, 1.0, 1.0, 1.1, 1.1, 1.1)]).point()["stable"]


def test_steps_that_got_slower_are_flagged() -> None:
    cool, hot = [(1.0, 1.0, 1.0)] * 3, [(1.3, 1.0, 1.0)] * 3
    assert C.slowed([stepped([*cool, *hot]), stepped([*cool, *hot])])
    assert not C.slowed([stepped([*cool, *cool]), stepped([*cool, *cool])])
    assert not C.slowed([])


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
