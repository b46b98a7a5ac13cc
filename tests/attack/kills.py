"""`kill -9` at random moments of a compile: the bundle is whole or not there, and what is left goes with the next."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hetero_sd.runtime.manifest import Bundle
from targets.errors import UserError
from tests.attack.figure import Figures
from tests.attack.workers import CompileWorker, Question, compile_arguments

FULL = 1000
WHOLE_EVERY = 25  # a run that nobody kills, after which nothing may be left
_LEFT = re.compile(r"\.out\.new\.[a-z0-9_]{8}")


def attack(count: int, first: int, jobs: int) -> Figures:
    """Kill `count` compiles, with the moments of the seeds from `first` on."""
    ends = [first + count * i // jobs for i in range(jobs + 1)]
    figures = Figures("kills of a compile", f"seeds {first} to {first + count - 1}")
    with ThreadPoolExecutor(jobs) as pool:
        for part in pool.map(_share, ends[:-1], ends[1:]):
            figures.counts.update(part.counts)
            figures.failures += part.failures
    return figures


def _share(first: int, end: int) -> Figures:
    with tempfile.TemporaryDirectory(prefix="hsd-kills-") as name:
        base = Path(name)
        (base / "here").mkdir()
        with CompileWorker(base / "tmp", generate=True) as worker:
            return _kill(worker, base, first, end)


def _kill(worker: CompileWorker, base: Path, first: int, end: int) -> Figures:
    out, scratch = base / "here" / "out", base / "tmp"
    session = scratch / ".ses"  # onnxruntime's
    before: set[str] = set()
    figures, whole = Figures("", ""), Question(compile_arguments(out))
    intact = worker.ask(whole)
    assert intact.code == 0, intact.err
    lasts_s = intact.seconds
    wanted = (out / "manifest.json").read_bytes()
    shutil.rmtree(out)
    for seed in range(first, end):
        rng = random.Random(seed)
        after_s = rng.uniform(0, 1.1 * lasts_s)
        outcome = worker.ask(Question(whole.arguments, kill_after_s=after_s, kill_group=rng.random() < 0.5))
        figures.counts["killed" if outcome.code == -9 else "ended before"] += 1
        if outcome.code not in (0, -9):
            figures.failures.append(f"seed {seed}, {after_s:.3f} s: ended with {outcome.code}: {outcome.err[-200:]}")
        left = {path.name for path in out.parent.iterdir() if path != out}
        figures.counts["left a folder"] += bool(left - before)
        before = left
        if not all(map(_LEFT.fullmatch, left)):
            figures.failures.append(f"seed {seed}, {after_s:.3f} s: left {sorted(left)}")
        figures.failures += [f"seed {seed}, {after_s:.3f} s: {line}" for line in _wrong(out, wanted)]
        if out.exists():
            figures.counts["bundle whole"] += 1
            shutil.rmtree(out)
        if (seed - first) % WHOLE_EVERY == WHOLE_EVERY - 1 or seed == end - 1:
            outcome = worker.ask(whole)
            lasts_s = outcome.seconds
            beside = [path.name for path in (*out.parent.iterdir(), *scratch.iterdir()) if path not in (out, session)]
            if outcome.code != 0 or beside:
                figures.failures.append(f"the run after seed {seed} ended with {outcome.code} and left {beside}")
            figures.failures += [f"the run after seed {seed}: {line}" for line in _wrong(out, wanted)]
            shutil.rmtree(out)
    return figures


def _wrong(out: Path, wanted: bytes) -> list[str]:
    """What is wrong with a bundle, if it is there."""
    if not out.exists():
        return []
    try:
        Bundle(out).verify_all()
    except UserError as error:
        return [f"the bundle is not whole: {error}"]
    return [] if (out / "manifest.json").read_bytes() == wanted else ["another bundle"]
