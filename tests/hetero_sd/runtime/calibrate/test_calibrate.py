from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodel.schema.measured import CpuState, MachineState, MachineStates, Measured, MeasuredStep
from hetero_sd.runtime.calibrate import bandwidths, measure
from hetero_sd.runtime.calibrate import calibrate as C
from hetero_sd.runtime.calibrate.budget import Budget
from hetero_sd.runtime.model.protocol import Done, Model, Models
from targets.errors import UserError
from targets.host import bandwidth


class Still(Model):
    """A model whose steps take no time worth measuring; it keeps what it was asked."""

    name, vocab, context, widths, prefill_widths = "target", 8, 64, (1, 4), (16,)

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def argmax(self, ids: Any, pos: int) -> Any:
        assert pos + len(ids) <= self.context
        self.asked.append((len(ids), pos))
        return np.zeros(len(ids), np.int64)

    def extend(self, ids: Any, pos: int) -> int:
        self.asked.append((len(ids), pos))
        return 0

    def submit(self, ids: Any, pos: int, outputs: Any = (), last: bool = False) -> Done:
        """As the decoding loop asks."""
        return Done(np.zeros((1 if last else len(ids), self.vocab), np.float32))


class Clock:
    """Seconds that pass only when told, and a little each time somebody looks."""

    def __init__(self, look_s: float = 0.0) -> None:
        self.now_s, self.look_s = 0.0, look_s

    def __call__(self) -> float:
        self.now_s += self.look_s
        return self.now_s


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_SMALLEST_BYTES", 1 << 16)
    monkeypatch.setattr(measure, "_SHORTEST_S", 1e-5)
    monkeypatch.setattr(bandwidths, "_WINDOW_S", 0.001)


def test_every_width_at_every_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    model, notes = Still(), []
    monkeypatch.setattr(bandwidths, "cpu_groups", lambda: [(0,), (1,)])
    monkeypatch.setattr(bandwidths, "_read_together", lambda case, gpu: [10.0] * len(case))
    result = C.calibrate(Models(model), 2, 40, tmp_path / "m.json", notes.append, Clock(look_s=0.1))
    assert Measured.from_json(json.loads((tmp_path / "m.json").read_text())) == result
    points = [(p.n, p.past) for p in result.points if not p.chunk]
    assert points == [(n, past) for past in (15, 16, 30, 60) for n in (1, 4)]
    assert [(p.n, p.past) for p in result.points if p.chunk == 16] == [(16, 0), (16, 16), (32, 0), (32, 16)]
    wide = Still()
    wide.prefill_widths = (16, 32)
    assert [(s.facts.n, s.facts.past, s.facts.chunk) for s in C.steps_of(wide) if s.facts.chunk] == [
        *((16, past, 16) for past in (0, 16)),  # two of them are one of the wide ones
        *((32, 0, 32), (64, 0, 32)),
    ]
    assert all(p.samples >= C.LEAST_REPEATS and p.low <= p.seconds <= p.high for p in result.points)
    assert all(p.processor == "cpu" for p in result.points)
    assert model.asked[0] == (60, 0)  # the caches are filled first
    assert result.passes >= C.LEAST_REPEATS
    assert result.passes == sum(note.startswith("pass") for note in notes)
    assert 0 < result.seconds <= 41.5  # the looks at the clock after the last step count, too
    assert result.not_measured == ()
    assert not any(note.startswith("no time") for note in notes)
    assert result.bandwidth_gb_per_s > 0
    assert result.gpu is None
    assert [entry.readers for entry in result.bandwidths] == [((0,),), ((1,),), ((0,), (1,))]  # and every pair


class Slow(Still):
    """A model whose steps take the clock's time: so much a token."""

    def __init__(self, clock: Clock, token_s: float) -> None:
        super().__init__()
        self.clock, self.token_s = clock, token_s

    def argmax(self, ids: Any, pos: int) -> Any:
        self.clock.now_s += self.token_s * len(ids)
        return super().argmax(ids, pos)

    def extend(self, ids: Any, pos: int) -> int:
        self.clock.now_s += self.token_s * len(ids)
        return super().extend(ids, pos)

    def submit(self, ids: Any, pos: int, outputs: Any = (), last: bool = False) -> Done:
        self.clock.now_s += self.token_s * len(ids)
        return super().submit(ids, pos, outputs, last)


@pytest.mark.parametrize("token_s", [0.001, 0.012, 0.05, 0.1])  # 25 ms over each is no half
def test_the_seconds_are_kept_whatever_a_step_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token_s: float
) -> None:
    """On a slow device too: what does not fit is left out and said, and what was measured is kept."""
    small(monkeypatch)
    clock, notes = Clock(), []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock.now_s)
    monkeypatch.setattr(C, "BandwidthReader", lambda threads: lambda: 10.0)
    monkeypatch.setattr(bandwidths, "cpu_groups", lambda: [(0,), (1,), (2,)])

    def read_together(case: Any, gpu: Any) -> list[float]:
        clock.now_s += 0.4
        return [10.0] * len(case)

    monkeypatch.setattr(bandwidths, "_read_together", read_together)
    result = C.calibrate(Models(Slow(clock, token_s)), 1, 40, tmp_path / "m.json", notes.append, clock)
    assert clock.now_s <= 40 + 1e-9
    assert clock.now_s > 20  # and most of it is used
    assert result.points
    assert len(result.points) + len(result.not_measured) == 12
    assert all(p.samples >= C.LEAST_REPEATS or not p.stable for p in result.points)
    short = [note for note in notes if "--calibrate-seconds" in note]
    assert bool(short) == any(p.samples < C.LEAST_REPEATS for p in result.points) or result.not_measured
    assert bool(short) == (token_s >= 0.05)


@pytest.mark.parametrize("slow", [0, 5, 11])
def test_one_slow_time_of_a_step_does_not_end_the_measurement(monkeypatch: pytest.MonkeyPatch, slow: int) -> None:
    """It takes a quarter of all the time once; all steps are timed all the same, that one again."""
    clock = Clock()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock.now_s)
    budget, waits = Budget(40, clock), [10.0]

    def run(i: int, n: int) -> None:
        clock.now_s += 0.05 * n + (waits.pop() if i == slow and waits else 0.0)

    widths = [1, 2, 4] * 4
    steps = [
        measure.Step(MeasuredStep("target", "cpu", n, past, 0), lambda i=i, n=n: run(i, n))  # type: ignore[misc]
        for past, (i, n) in enumerate(enumerate(widths))
    ]
    while measure.take_turn(steps, lambda: 10.0, budget):
        pass
    assert all(len(step.samples) >= C.LEAST_REPEATS for step in steps)
    assert 38 < clock.now_s <= 40 + 1e-9
    seconds = steps[slow].point().seconds
    assert seconds == pytest.approx(0.05 * widths[slow])


@pytest.mark.slow
def test_bandwidths_leave_time_for_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    clock, notes = Clock(look_s=0.001), []
    monkeypatch.setattr(bandwidths, "cpu_groups", lambda: [(i,) for i in range(8)])

    def read_together(case: Any, gpu: Any) -> list[float]:
        clock.now_s += 1.0
        return [10.0] * len(case)

    monkeypatch.setattr(bandwidths, "_read_together", read_together)
    result = C.calibrate(Models(Still()), 1, 40, tmp_path / "m.json", notes.append, clock)
    assert 1 <= len(result.bandwidths) <= 12
    assert [len(entry.readers) for entry in result.bandwidths[:8]] == [1] * 8  # each alone comes first
    assert "no time for" in " ".join(notes)
    assert result.points


def test_too_short_for_a_single_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    clock = Clock()
    monkeypatch.setattr(bandwidths, "_read_together", lambda case, gpu: [10.0] * len(case))
    with pytest.raises(UserError, match="1 s were too short to time a single step: give more --calibrate-seconds"):
        C.calibrate(Models(Slow(clock, 1.0)), 1, 1, tmp_path / "m.json", lambda line: None, clock)
    assert list(tmp_path.iterdir()) == []


def stepped(samples: list[tuple[float, float, float]]) -> measure.Step:
    return measure.Step(MeasuredStep("target", "cpu", 1, 0, 0), int, samples)


def filling(clock: Clock, runs: int, cold_s: float, warm_s: float) -> Callable[[], None]:
    """A step whose data a cache takes in piece by piece: from cold to warm in so many runs."""
    done = iter(range(10**6))

    def run() -> None:
        clock.now_s += max(warm_s, cold_s - (cold_s - warm_s) * next(done) / runs)

    return run


def test_a_step_is_timed_once_its_cache_took_in_what_it_can_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """28 MB in a cache of 32 MB: 2 ms at first, 0.4 ms after 40 runs, which a count from the first run misses."""
    clock = Clock()
    assert measure.back_to_back_s(filling(clock, 40, 2e-3, 4e-4), clock) == pytest.approx(4e-4)
    # the negative control: after 25 ms, whatever later runs take, it is far from warm
    monkeypatch.setattr(measure, "_LONGEST_WARM_S", 25e-3)
    clock = Clock()
    assert measure.back_to_back_s(filling(clock, 40, 2e-3, 4e-4), clock) > 2 * 4e-4


def test_a_step_that_stays_as_slow_is_not_run_for_longer() -> None:
    clock = Clock()
    assert measure.back_to_back_s(filling(clock, 1, 2e-3, 2e-3), clock) == pytest.approx(2e-3)
    assert clock.now_s < 45e-3


def test_samples_with_unsteady_bandwidth_are_left_out() -> None:
    steady = [(1.0, 10.0, 10.0)] * 5
    found = stepped([*steady, (9.0, 10.0, 3.0)]).point()
    assert (found.n, found.seconds, found.samples, found.stable) == (1, 1.0, 5, True)
    assert not stepped([(1.0, 10.0, 5.0)] * 6).point().stable
    assert not stepped(steady).point(least=6).stable


def test_memory_of_two_speeds_gives_the_time_at_the_one_that_was_seen_more_often() -> None:
    """Between both lies a time that no step had; five of either are five, not ten."""
    fast, slow = [(1.0, 74.0, 76.0)] * 6, [(1.6, 46.0, 47.0)] * 5
    found = stepped([*slow, *fast]).point()
    assert (found.seconds, found.bandwidth_gb_per_s, found.samples, found.stable) == (1.0, 75.0, 6, True)
    assert not stepped([*slow, *fast]).point(least=10).stable
    near = [(1.0, b, b) for b in (70.0, 72.0, 74.0, 76.0, 78.0)]
    assert stepped(near).point().samples == 5


def test_samples_that_disagree_are_unstable() -> None:
    assert not stepped([(t, 10.0, 10.0) for t in (1.0, 1.0, 1.0, 1.3, 1.3, 1.3)]).point().stable
    assert stepped([(t, 10.0, 10.0) for t in (1.0, 1.0, 1.0, 1.1, 1.1, 1.1)]).point().stable


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
    assert state == MachineState({"cpu0": CpuState("schedutil", 1800)}, 61.5)
    cooler = MachineState({"cpu0": CpuState("schedutil", 1500)}, None)
    assert C.clocks_fell(MachineStates(state, cooler))
    assert not C.clocks_fell(MachineStates(state, state))
    assert not C.clocks_fell(MachineStates(state, MachineState({}, None)))


def test_an_unwritable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    with pytest.raises(UserError, match="cannot be written"):
        C.calibrate(Models(Still()), 1, 1, tmp_path / "missing" / "m.json", lambda line: None)
