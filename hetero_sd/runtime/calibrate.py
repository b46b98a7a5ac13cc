"""`run.py --calibrate`: measures, on the device, what the cost model's factors are fitted to.

T(n) of the bundle's own entry points and prompts at several contexts, the bandwidth beside each; before that the
bandwidth of every cluster and of the GPU, alone and two at a time, and what launches and hand-overs of the GPU cost.
The state of the machine (governor, clocks, temperature) is recorded before and after. All points are taken in turn and
repeated until the time is up, so that a slow spell hits all of them. `hetero-sd calibrate` turns the file into a board
file.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from hetero_sd.runtime.calibrate_gpu import GpuCosts
from hetero_sd.runtime.contention import measure_bandwidths
from hetero_sd.runtime.interface import Models
from hetero_sd.runtime.measure import LEAST_REPEATS, Step, take_turns
from targets.errors import UserError
from targets.host.bandwidth import BandwidthReader

FORMAT = 1
MOST_SECONDS = 600
_WARM_S = 2.0  # a GPU reads this long before anything counts, so that its clock is up
_SLOWER = 0.9  # a clock, or the last pass beside the first, below this share of it is throttled


def calibrate(models: Models, threads: int, seconds: float, out: Path, note: Callable[[str], None]) -> dict[str, Any]:
    """Measure for about `seconds` and write the result to `out`.

    Args:
        models: the bundle's models, loaded.
        threads: of the CPU kernels.
        seconds: at most MOST_SECONDS.
        out: JSON file, written whole or not at all.
        note: receives progress, one line at a time.

    Raises:
        UserError: the file cannot be written.
    """
    start, before = time.monotonic(), machine_state()
    here = [model for model in (models.target, models.draft) if model is not None]
    device = next((d for d in (getattr(model, "gpu_device", None) for model in here) if d is not None), None)
    gpu = None if device is None else GpuCosts(device)
    if gpu is not None:
        note("warming the GPU")
        while time.monotonic() - start < _WARM_S:
            gpu.gb_per_s()
    note("bandwidth of each processor, alone and two together")
    bandwidths = measure_bandwidths(gpu)
    costs = None if gpu is None else {**gpu.launches(), "hand_over": gpu.hand_overs(), "device": _device_facts()}

    read = BandwidthReader(threads)
    steps = {True: [], False: []}  # type: dict[bool, list[Step]]
    for model in here:
        steps[getattr(model, "gpu_device", None) is not None] += steps_of(model)
    limit, longest = min(seconds, MOST_SECONDS), [0.0]

    def more(passes: int) -> bool:
        spent = time.monotonic() - start
        if passes:
            note(f"pass {passes}: {spent:.0f} s of {seconds:.0f} s")
            longest[0] = spent / passes
        return spent + longest[0] < MOST_SECONDS and (passes < LEAST_REPEATS or spent < limit)

    # A pass goes over the CPU's steps and then over the GPU's, each with the bandwidth of its own processor beside it.
    passes = 0
    while more(passes):
        take_turns(steps[False], read, lambda done: done < 1)
        if gpu is not None:
            take_turns(steps[True], gpu.gb_per_s, lambda done: done < 1)
        passes += 1
    timed = [*steps[False], *steps[True]]
    result = {
        "format": FORMAT,
        "threads": threads,
        "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "bandwidth_gb_per_s": median([r for step in steps[False] for s in step.samples for r in s[1:]] or [read()]),
        "bandwidth_one_thread_gb_per_s": BandwidthReader(1)(),
        "bandwidths": bandwidths,
        "gpu": costs,
        "region_cost_s": _region_cost_s(here),
        "points": [step.point() for step in timed],
        "passes": passes,
        "slowed": slowed(timed),
        "machine": {"before": before, "after": machine_state()},
    }
    part = out.with_name(f".{out.name}.part")
    try:
        part.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
        os.replace(part, out)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    return result


def steps_of(model: Any) -> list[Step]:
    """The steps to time: every width at a short, a middle and two long contexts, and prompts of one and two chunks."""
    longest = model.context - max(model.widths)
    contexts = sorted({min(16, longest), longest // 4, longest // 2, longest})
    model.extend([1] * longest, 0)  # caches hold numbers, not what memory happened to contain
    place = {"model": model.name, "processor": getattr(model, "processor", "cpu")}
    steps = [
        Step({**place, "n": n, "past": past, "chunk": 0}, lambda n=n, past=past: model.argmax([1] * n, past))  # type: ignore[misc]
        for past in contexts
        for n in model.widths
    ]
    chunk = getattr(model, "prefill_width", 0)
    for tokens in (chunk, 2 * chunk):
        for past in (0, (model.context - 2 * chunk) // 2) if 0 < tokens <= model.context else ():
            facts = {**place, "n": tokens, "past": past, "chunk": chunk}
            steps.append(Step(facts, lambda n=tokens, past=past: model.extend([1] * n, past)))  # type: ignore[misc]
    return steps


def _region_cost_s(models: list[Any]) -> dict[str, float]:
    """Seconds that a parallel region adds, by threads; empty where TVM's pool runs the kernels, or one thread does."""
    pools = [pool for pool in (getattr(model, "pool", None) for model in models) if pool is not None]
    return {str(pool.threads): pool.region_cost_s(rounds=2001) for pool in pools[:1] if pool.threads > 1}


def _device_facts() -> dict[str, Any]:
    """What the OpenCL driver says of the device."""
    from targets.mali import opencl

    return opencl.devices()[0]


def slowed(steps: list[Step]) -> bool:
    """Whether the last third of the samples took longer than the first, at the median step: heat, or a lower clock."""
    ratios = []
    for step in steps:
        times, third = [s[0] for s in step.samples], max(1, len(step.samples) // 3)
        ratios.append(median(times[:third]) / median(times[-third:]))
    return bool(ratios) and median(ratios) < _SLOWER


def machine_state(root: Path = Path("/")) -> dict[str, Any]:
    """Governor and clock of each CPU, and the hottest thermal zone; what the system does not say is left out."""
    cpus = {}
    for folder in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*")):
        governor, clock = (_text(folder / "cpufreq" / name) for name in ("scaling_governor", "scaling_cur_freq"))
        if governor or clock:
            cpus[folder.name] = {"governor": governor, "mhz": int(clock) // 1000 if clock.isdigit() else None}
    zones = [_text(zone / "temp") for zone in (root / "sys/class/thermal").glob("thermal_zone*")]
    heat = [int(t) / 1000 for t in zones if t.lstrip("-").isdigit()]
    return {"cpus": cpus, "hottest_celsius": max(heat, default=None)}


def throttled(result: dict[str, Any]) -> bool:
    """Whether a clock fell by more than a tenth while measuring, or the last steps took longer than the first."""
    before, after = (result["machine"][k]["cpus"] for k in ("before", "after"))
    return bool(result.get("slowed")) or any(
        old.get("mhz") and after.get(cpu, {}).get("mhz") and after[cpu]["mhz"] < _SLOWER * old["mhz"]
        for cpu, old in before.items()
    )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""
