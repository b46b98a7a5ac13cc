"""`kill -9` at random moments of a first run, which fills the program cache: the next run has the intact run's tokens.

What is in the cache then is whole or not there, and what was half-written goes with the next run.
"""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import tempfile
from pathlib import Path

from host_with_gpu import host_with_gpu

from hetero_sd import cli
from hetero_sd.compile import compile as compile_module
from tests.attack.figure import Figures
from tests.attack.workers import EXPORTS, CompileWorker, Question, run_arguments, tokens

FULL = 1000


def attack(count: int, first: int, jobs: int) -> Figures:
    """Kill `count` first runs, with the moments of the seeds from `first` on; one after the other."""
    with tempfile.TemporaryDirectory(prefix="hsd-first-runs-") as name:
        base = Path(name)
        bundle = base / "bundle"
        _compile(bundle)
        # the driver keeps what it compiles, too: so a first run takes less time, and more moments hit the cache of ours
        with CompileWorker(base / "tmp", more={"POCL_CACHE_DIR": str(base / "pocl")}) as worker:
            return _kill(worker, bundle, base / "cache", range(first, first + count))


def _compile(bundle: Path) -> None:
    """A bundle with one model on the GPU."""
    made = compile_module.load_board
    compile_module.load_board = lambda name, measure: host_with_gpu()
    try:
        export, tokenizer = EXPORTS / "llama-drafter-dynamo-fp32" / "model.onnx", EXPORTS / "llama-dynamo-fp32"
        options = ["--tokenizer", tokenizer, "--board", "host", "--context", "64", "--place", "gpu", "--out", bundle]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert cli.main([*map(str, ["compile", export, *options])]) == 0
    finally:
        compile_module.load_board = made


def _kill(worker: CompileWorker, bundle: Path, cache: Path, seeds: range) -> Figures:
    figures = Figures("kills of a first run", f"seeds {seeds.start} to {seeds.stop - 1}")
    asked = Question((*run_arguments(bundle), "--cache-dir", str(cache)))
    for _ in range(2):
        shutil.rmtree(cache, ignore_errors=True)
        intact = worker.ask(asked)
        assert intact.code == 0, intact.err
    entries = names(cache)
    assert entries, "the run keeps no program: is OpenCL there?"
    for seed in seeds:
        shutil.rmtree(cache)
        rng = random.Random(seed)
        after_s = rng.uniform(0, 1.1 * intact.seconds)
        outcome = worker.ask(Question(asked.arguments, kill_after_s=after_s, kill_group=True))
        figures.counts["killed" if outcome.code == -9 else "ended before"] += 1
        left = names(cache)
        figures.counts["cache begun"] += bool(left)
        figures.counts["something half-written"] += bool(left - entries)
        after = worker.ask(asked)
        if after.code != 0 or tokens(after) != tokens(intact):
            problem = f"the next run ended with {after.code}: {after.out[:200]!r} {after.err[-200:]!r}"
            figures.failures.append(f"seed {seed}, {after_s:.3f} s: {problem}")
        if names(cache) != entries:
            figures.failures.append(f"seed {seed}, {after_s:.3f} s: the cache has {sorted(names(cache) ^ entries)}")
    return figures


def names(folder: Path) -> set[str]:
    """The files of a folder that may not be there."""
    return {path.name for path in folder.iterdir()} if folder.exists() else set()
