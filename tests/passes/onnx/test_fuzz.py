"""Ten thousand damaged exports: each ends in one line or answers as onnxruntime does, in bounded time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("fuzz_worker.py")
FILES, FEW = 10_000, 40


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


def report(failures: list[str]) -> str:
    again = f"python tests/passes/onnx/{WORKER.name} --count 1 -v --first SEED"
    return f"{len(failures)} failures; to see one again: {again}\n" + "\n".join(failures[:20])


@pytest.mark.deep
def test_damaged_files_end_in_one_line_or_in_the_right_answers() -> None:
    workers = 2
    with ThreadPoolExecutor(workers) as pool:
        size = FILES // workers
        parts = list(pool.map(lambda i: share(i * size, size), range(workers)))
    failures = [line for _, lines in parts for line in lines]
    assert not failures, report(failures)
    total = {name: sum(counts[name] for counts, _ in parts) for name in parts[0][0]}
    assert total["imported"] + total["refused"] == FILES
    assert min(total["imported"], total["refused"]) > FILES / 10, total  # damage that shows, and damage that does not
    assert total["equal"] >= 2000, total
    print(total)


@pytest.mark.slow
def test_a_few_damaged_files() -> None:
    counts, failures = share(0, FEW)
    assert not failures, report(failures)
    assert counts["imported"] + counts["refused"] == FEW


@pytest.mark.parametrize(
    ("defect", "shown", "count"),
    [
        ("KeyError", "KeyError", 20),
        ("memory", "MiB for a file", 10),
        ("exit", "ended with", 5),  # each exit: a start
        ("answer", "another answer", 20),
    ],
)
@pytest.mark.slow
def test_a_planted_defect_is_found(defect: str, shown: str, count: int) -> None:
    _, failures = share(0, count, "--plant", defect)
    assert failures
    assert all(line.startswith("seed ") for line in failures)
    assert any(shown in line for line in failures), failures[0]
