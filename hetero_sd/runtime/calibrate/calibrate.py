"""`run.py --calibrate`: measures, on the device, what the cost model's factors are fitted to.

T(n) of the bundle's own entry points and prompts at several contexts, the bandwidth beside each, and what rounds
of both models take longer than their steps alone; before that the bandwidth of every cluster and of the GPU, alone and
two at a time, and what launches and hand-overs of the GPU cost.
The state of the machine (governor, clocks, temperature) is recorded before and after. All points are taken in turn and
repeated until the time is up, so that a slow spell hits all of them; a step that would not end in time is not begun.
`hetero-sd calibrate` turns the file into a board file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from costmodel.prompt_chunks import next_chunk
from costmodel.schema.measured import (
    CALIBRATION_FORMAT,
    CpuState,
    GpuDevice,
    MachineState,
    MachineStates,
    Measured,
    MeasuredGpu,
    MeasuredStep,
)
from hetero_sd.runtime.calibrate.bandwidths import cases_of, measure_bandwidths
from hetero_sd.runtime.calibrate.budget import Budget
from hetero_sd.runtime.calibrate.calibrate_gpu import GpuCosts
from hetero_sd.runtime.calibrate.measure import LEAST_REPEATS, Step, take_turn
from hetero_sd.runtime.calibrate.turns import TurnCosts, plain_costs_s
from hetero_sd.runtime.model.protocol import Models
from targets.errors import UserError
from targets.files import check_writable, write_text
from targets.host.bandwidth import BandwidthReader

MOST_SECONDS = 600
_WARM_S = 2.0  # a GPU reads this long before anything counts, so that its clock is up,
_WARM_SHARE = 0.1  # or this share of the time
_SLOWER = 0.9  # a clock, or the last pass beside the first, below this share of it is throttled


def calibrate(
    models: Models,
    threads: int,
    seconds: float,
    out: Path,
    note: Callable[[str], None],
    clock: Callable[[], float] | None = None,
) -> Measured:
    """Measure for at most `seconds` and write the result to `out`; what there was no time for is said.

    Args:
        models: the bundle's models, loaded.
        threads: of the CPU kernels.
        seconds: at most MOST_SECONDS.
        out: JSON file, written whole or not at all.
        note: receives progress, one line at a time.
        clock: seconds that pass, for tests.

    Raises:
        UserError: the file cannot be written, or there was no time for a single step.
    """
    check_writable(out)  # before the work
    budget, before = Budget(min(seconds, MOST_SECONDS), clock), machine_state()
    here = [model for model in (models.target, models.draft) if model is not None]
    for model in here:
        if (read_with := getattr(model, "read_with", None)) is not None:
            read_with(threads)  # what is fitted says the threads of all points
    device = next((d for d in (getattr(model, "gpu_device", None) for model in here) if d is not None), None)
    gpu = None if device is None else GpuCosts(device)
    if gpu is not None:
        note("warming the GPU")
        while budget.spent_s < _WARM_S and budget.allows("warm", share=_WARM_SHARE):
            with budget.spend("warm"):
                gpu.gb_per_s()
    note("bandwidth of each processor, alone and two together")
    read, one_thread = BandwidthReader(threads), BandwidthReader(1)()
    bandwidths = measure_bandwidths(gpu, budget)
    costs = None if gpu is None else MeasuredGpu(*gpu.launches(), gpu.hand_overs(), _device_facts())

    note("the decoding loop")
    plain = plain_costs_s(models.target, budget, clock or time.perf_counter)
    turns = TurnCosts(models, 0.0 if plain is None else plain[0], clock or time.perf_counter)
    steps = {True: [], False: []}  # type: dict[bool, list[Step]]
    for model in here:
        note(f"filling the caches of {model.name}")
        steps[getattr(model, "gpu_device", None) is not None] += steps_of(model)

    # A pass goes over the CPU's steps and then over the GPU's, each with the bandwidth of its own processor beside it.
    passes = 0
    while take_turn(steps[False], read, budget) and (gpu is None or take_turn(steps[True], gpu.gb_per_s, budget)):
        passes += 1
        turns.take(budget)
        note(f"pass {passes}: {budget.spent_s:.0f} s of {budget.seconds:.0f} s")
    timed = [step for step in [*steps[False], *steps[True]] if step.samples]
    if not timed:
        raise UserError(f"{budget.seconds:.0f} s were too short to time a single step: give more --calibrate-seconds")
    for line in shortfall([*steps[False], *steps[True]], len(bandwidths), cases_of(gpu is not None)):
        note(line)
    result = Measured(
        format=CALIBRATION_FORMAT,
        threads=threads,
        cpus=tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else (),
        bandwidth_gb_per_s=median([r for step in steps[False] for s in step.samples for r in s[1:]] or [read()]),
        bandwidth_one_thread_gb_per_s=one_thread,
        bandwidths=tuple(bandwidths),
        gpu=costs,
        region_cost_s=_region_cost_s(here),
        int8_activations=tuple(model.name for model in here if getattr(model, "int8_activations", False)),
        kv_caches={model.name: stored for model in here if (stored := getattr(model, "kv", None)) is not None},
        quantised={m.name: facts for m in here if (facts := getattr(m, "quantised", None)) is not None},
        points=tuple(step.point() for step in timed),
        not_measured=tuple(step.facts for step in [*steps[False], *steps[True]] if not step.samples),
        passes=passes,
        seconds=budget.spent_s,
        slowed=slowed(timed),
        machine=MachineStates(before, machine_state()),
        loop_s=None if plain is None else plain[0],
        start_s=None if plain is None else plain[1],
        turns=turns.result(),
    )
    write_text(out, json.dumps(result.to_json(), indent=1) + "\n")
    return result


def shortfall(steps: list[Step], bandwidths: int, cases: int) -> list[str]:
    """What there was no time for, one line each."""
    lines, missing = [], sum(not step.samples for step in steps)
    if bandwidths < cases:
        lines.append(f"no time for {cases - bandwidths} of {cases} bandwidths: give more --calibrate-seconds")
    if missing:
        lines.append(f"no time for {missing} of {len(steps)} steps: give more --calibrate-seconds")
    few = sum(0 < len(step.samples) < LEAST_REPEATS for step in steps)
    if few:
        lines.append(
            f"{few} of {len(steps)} steps were timed fewer than {LEAST_REPEATS} times, which counts as unstable: "
            "give more --calibrate-seconds"
        )
    return lines


def steps_of(model: Any) -> list[Step]:
    """The steps to time: every width at a short, a middle and two long contexts, and prompts of one and two chunks.

    Two narrow chunks are timed where the model does not read them as a wide one.
    """
    longest = model.context - max(model.widths)
    contexts = sorted({min(16, longest), longest // 4, longest // 2, longest})
    model.extend([1] * longest, 0)  # caches hold numbers, not what memory happened to contain
    place = (model.name, getattr(model, "processor", "cpu"))
    steps = [
        Step(MeasuredStep(*place, n, past, 0), lambda n=n, past=past: model.argmax([1] * n, past))  # type: ignore[misc]
        for past in contexts
        for n in model.widths
    ]
    chunks = getattr(model, "prefill_widths", ())
    for tokens, chunk in [(times * chunk, chunk) for chunk in chunks for times in (1, 2)]:
        read = tokens <= model.context and next_chunk(tokens, chunks) == chunk
        for past in sorted({0, max(0, model.context - 2 * chunk) // 2}) if read else ():
            facts = MeasuredStep(*place, tokens, past, chunk)
            steps.append(Step(facts, lambda n=tokens, past=past: model.extend([1] * n, past)))  # type: ignore[misc]
    return steps


def _region_cost_s(models: list[Any]) -> dict[int, float]:
    """Seconds that a parallel region adds, by threads; empty where TVM's pool runs the kernels, or one thread does."""
    pools = [pool for pool in (getattr(model, "pool", None) for model in models) if pool is not None]
    return {pool.threads: pool.region_cost_s(rounds=2001) for pool in pools[:1] if pool.threads > 1}


def _device_facts() -> GpuDevice:
    """What the OpenCL driver says of the device."""
    from targets.opencl import interface as opencl

    return GpuDevice.of(opencl.devices()[0])


def slowed(steps: list[Step]) -> bool:
    """Whether the last third of the samples took longer than the first, at the median step: heat, or a lower clock."""
    ratios = []
    for step in steps:
        times, third = [s[0] for s in step.samples], max(1, len(step.samples) // 3)
        ratios.append(median(times[:third]) / median(times[-third:]))
    return bool(ratios) and median(ratios) < _SLOWER


def machine_state(root: Path = Path("/")) -> MachineState:
    """Governor and clock of each CPU, and the hottest thermal zone; what the system does not say is left out."""
    cpus = {}
    for folder in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*")):
        governor, clock = (_text(folder / "cpufreq" / name) for name in ("scaling_governor", "scaling_cur_freq"))
        if governor or clock:
            cpus[folder.name] = CpuState(governor, int(clock) // 1000 if clock.isdigit() else None)
    zones = [_text(zone / "temp") for zone in (root / "sys/class/thermal").glob("thermal_zone*")]
    heat = [int(t) / 1000 for t in zones if t.lstrip("-").isdigit()]
    return MachineState(cpus, max(heat, default=None))


def throttled(result: Measured) -> bool:
    """Whether a clock fell by more than a tenth while measuring, or the last steps took longer than the first."""
    return result.slowed or clocks_fell(result.machine)


def clocks_fell(machine: MachineStates) -> bool:
    """Whether a clock fell by more than a tenth."""
    before, after = machine.before.cpus, machine.after.cpus
    clocks = [(before[cpu].mhz, after[cpu].mhz) for cpu in before if cpu in after]
    return any(old and new and new < _SLOWER * old for old, new in clocks)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""
