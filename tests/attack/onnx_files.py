"""Damaged ONNX files, structure-aware and in bytes: one line each, or onnxruntime's answer on the damaged file."""

from __future__ import annotations

from collections import Counter

from tests.attack.figure import Figures
from tests.passes.onnx.fuzz_campaign import campaign

FULL = 10_000


def attack(count: int, first: int, jobs: int) -> Figures:
    """Import `count` damaged files, the seeds of fuzz_worker.py from `first` on."""
    counts, failures = campaign(first, count, jobs)
    seeds = f"fuzz_worker.py --first {first} --count {count}"
    return Figures("ONNX files", seeds, Counter(counts), failures)
