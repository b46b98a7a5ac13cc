"""`run.py --calibrate`: measures, on the device, what the cost model's factors are fitted to.

T(n) of the bundle's own entry points at several contexts, the bandwidth beside each pass, and the state of the machine
(governor, clocks, temperature). All points are taken in turn and repeated until the time is up, so that a slow spell
hits all of them. `hetero-sd calibrate` turns the file into a board file.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from hetero_sd.runtime.interface import Models
from targets.errors import UserError

FORMAT = 1
MOST_SECONDS = 600
LEAST_REPEATS = 5
_BANDWIDTH_BYTES = 256 << 20
_UNSTABLE = 0.15  # bandwidth before and after a pass may differ by this share


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
    read = BandwidthReader(threads)
    before = machine_state()
    steps = [step for model in (models.target, models.draft) if model is not None for step in steps_of(model)]
    samples: list[list[tuple[float, float, float]]] = [[] for _ in steps]
    start, passes = time.monotonic(), 0
    while passes < LEAST_REPEATS or time.monotonic() - start < min(seconds, MOST_SECONDS):
        for step, found in zip(steps, samples, strict=True):
            rate = read()
            found.append((step["run"](), rate, read()))
        passes += 1
        note(f"pass {passes}: {time.monotonic() - start:.0f} s of {seconds:.0f} s")
        if time.monotonic() - start > MOST_SECONDS:
            break
    result = {
        "format": FORMAT,
        "threads": threads,
        "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "bandwidth_gb_per_s": median(rate for found in samples for _, a, b in found for rate in (a, b)),
        "bandwidth_one_thread_gb_per_s": BandwidthReader(1)(),
        "points": [_point(step, found) for step, found in zip(steps, samples, strict=True)],
        "passes": passes,
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


def steps_of(model: Any) -> list[dict[str, Any]]:
    """The steps to time: every width of a model at a short, a middle and a long context."""
    longest = model.context - max(model.widths)
    contexts = sorted({min(16, longest), longest // 4, longest // 2, longest})
    model.extend([1] * longest, 0)  # caches hold numbers, not what memory happened to contain
    return [
        {"model": model.name, "n": n, "past": past, "run": _timer(model, n, past)}
        for past in contexts
        for n in model.widths
    ]


def _timer(model: Any, n: int, past: int) -> Callable[[], float]:
    ids = [1] * n

    def run() -> float:
        model.argmax(ids, past)  # the first call after another step fetches its code and small tensors
        start = time.perf_counter()
        model.argmax(ids, past)
        return time.perf_counter() - start

    return run


def _point(step: dict[str, Any], found: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    """Median of the stable samples; `stable` says whether there were enough of them."""
    steady = [(s, a, b) for s, a, b in found if abs(a - b) <= _UNSTABLE * max(a, b)]
    kept = steady if len(steady) >= LEAST_REPEATS else list(found)
    times = sorted(s for s, _, _ in kept)
    return {
        "model": step["model"],
        "n": step["n"],
        "past": step["past"],
        "seconds": median(times),
        "low": times[len(times) // 4],
        "high": times[(3 * len(times)) // 4],
        "bandwidth_gb_per_s": median(0.5 * (a + b) for _, a, b in kept),
        "samples": len(kept),
        "stable": len(steady) >= LEAST_REPEATS,
    }


class BandwidthReader:
    """GB/s at which some threads read a large array together: the largest element of an int32 array (numpy)."""

    def __init__(self, threads: int) -> None:
        """Fill the array."""
        self._parts = np.array_split(np.ones(_BANDWIDTH_BYTES // 4, np.int32), threads)

    def __call__(self) -> float:
        """Read it once."""
        gate = threading.Barrier(len(self._parts) + 1)

        def read(part: Any) -> None:
            gate.wait()
            part.max()
            gate.wait()

        workers = [threading.Thread(target=read, args=(part,)) for part in self._parts]
        for worker in workers:
            worker.start()
        gate.wait()
        start = time.perf_counter()
        gate.wait()
        elapsed = time.perf_counter() - start
        for worker in workers:
            worker.join()
        return _BANDWIDTH_BYTES / elapsed / 1e9


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
    """Whether a clock fell by more than 5 % while measuring."""
    before, after = (result["machine"][k]["cpus"] for k in ("before", "after"))
    return any(
        old.get("mhz") and after.get(cpu, {}).get("mhz") and after[cpu]["mhz"] < 0.95 * old["mhz"]
        for cpu, old in before.items()
    )


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""
