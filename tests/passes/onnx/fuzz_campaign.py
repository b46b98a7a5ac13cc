"""Shares of the seeds of fuzz_worker.py, each in a process that is started again where a file ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WORKER = Path(__file__).with_name("fuzz_worker.py")


def share(first: int, count: int, *options: str) -> tuple[dict[str, int], list[str]]:
    """Counts and failures of some seeds; a worker that dies is a failure of its seed and is started again after it."""
    counts, failures, end = {"imported": 0, "equal": 0, "refused": 0, "failed": 0}, [], first + count
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    while first < end:
        command = [sys.executable, str(WORKER), "--first", str(first), "--count", str(end - first), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
        failures += [f"seed {w[1]}: {json.loads(w[2])}" for w in lines if w[0] == "failed"]
        last = [w for w in lines if w[0] == "seed"]
        assert last, done.stderr
        ended = lines[-1][0] == "done"
        for name, number in json.loads(" ".join(lines[-1][1:]) if ended else last[-1][2]).items():
            counts[name] += number
        if ended:
            return counts, failures
        first = int(last[-1][1]) + 1
        if lines[-1][0] == "comparing" and done.returncode < 0:  # a signal: onnxruntime, on the damaged file itself
            counts["imported"] += 1
            continue
        counts["failed"] += 1
        failures.append(f"seed {last[-1][1]}: the process ended with {done.returncode}: {done.stderr[-1500:]}")
    return counts, failures


def campaign(first: int, count: int, jobs: int) -> tuple[dict[str, int], list[str]]:
    """The same by several processes at once."""
    ends = [first + count * i // jobs for i in range(jobs + 1)]
    with ThreadPoolExecutor(jobs) as pool:
        parts = list(pool.map(lambda i: share(ends[i], ends[i + 1] - ends[i]), range(jobs)))
    counts = {name: sum(counts[name] for counts, _ in parts) for name in parts[0][0]}
    return counts, [line for _, failures in parts for line in failures]


def report(failures: list[str]) -> str:
    again = f"python tests/passes/onnx/{WORKER.name} --count 1 -v --first SEED"
    return f"{len(failures)} failures; to see one again: {again}\n" + "\n".join(failures[:20])
