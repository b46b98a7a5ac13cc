"""Every operation that a compile asks of the system is denied once: no space, no memory; so is every one of a run.

Of a compile: the k-th open, write, fsync, rename, mkdir and chmod in the bundle's folder (odd ones: and every write
after it), the k-th large allocation, files beyond a size (which binds the linker, too), memory beyond a size. It ends
with the bundle, or with nothing, one line and exit code 2. It generates all code. A run ends with the intact run's
tokens or with that line.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from requirements import need_program

from hetero_sd.runtime.manifest import Bundle
from targets.errors import UserError
from tests.attack.figure import Figures
from tests.attack.workers import HERE, CompileWorker, Outcome, Question, compile_arguments, run_arguments, tokens

FULL = 1 << 20  # all of them
_LIMITS = 16  # sizes of memory that are tried


def preloaded(folder: Path) -> Path:
    """The library of faults.c, compiled into a folder."""
    library = folder / "faults.so"
    flags = ["-O1", "-Wall", "-Wextra", "-fPIC", "-shared", "-ldl", "-o"]
    subprocess.run([need_program("gcc"), HERE / "faults.c", *flags, library], check=True)
    return library


def attack(count: int, first: int, jobs: int) -> Figures:
    """Deny `count` things, spread over all that can be; `first` is the first of them."""
    with tempfile.TemporaryDirectory(prefix="hsd-faults-") as name:
        base = Path(name)
        out = base / "here" / "out"
        out.parent.mkdir()
        with CompileWorker(base / "tmp", preloaded(base), generate=True) as worker:
            figures = _deny_compile(worker, out, count, first)
            begin = len(figures.failures)
            whole = worker.ask(Question(compile_arguments(out)))
            assert whole.code == 0, whole.err
            for what, outcome, problem in _deny_run(worker, out, count, first):
                figures.counts[f"runs ended {outcome.code}"] += 1
                figures.failures += [f"run, {what} ({outcome.failed}): {problem}"] if problem else []
            assert len(figures.failures) >= begin
    return figures


def _deny_compile(worker: CompileWorker, out: Path, count: int, first: int) -> Figures:
    asked = Question(compile_arguments(out))
    intact = worker.ask(replace(asked, fault_below=str(out.parent)))
    assert intact.code == 0, intact.err
    wanted = (out / "manifest.json").read_bytes()
    sizes = sorted({path.stat().st_size for path in out.rglob("*") if path.is_file()})
    shutil.rmtree(out)
    below = replace(asked, fault_below=str(out.parent))
    cases = [replace(below, fault_at=k, fault_stays=bool(k % 2)) for k in range(1, intact.operations + 1)]
    cases += [replace(asked, allocation_at=k) for k in range(1, intact.allocations + 1)]
    cases += [replace(asked, most_file_bytes=size - 1) for size in sizes[-8:]]
    cases += [replace(asked, most_memory_bytes=(48 << 20) * k // _LIMITS) for k in range(_LIMITS)]
    figures = Figures("denied", f"{intact.operations} operations, {intact.allocations} allocations of a compile")
    for case in _spread(cases, count, first):
        outcome = worker.ask(case)
        figures.counts[f"compiles ended {outcome.code}"] += 1
        if problem := _compile_problem(outcome, out, wanted):
            figures.failures.append(f"compile, {_what(case)} ({outcome.failed}): {problem}")
        for path in out.parent.iterdir():
            shutil.rmtree(path)
    return figures


def _deny_run(worker: CompileWorker, bundle: Path, count: int, first: int) -> Iterator[tuple[str, Outcome, str]]:
    asked = Question(run_arguments(bundle))
    intact = worker.ask(replace(asked, fault_below=str(bundle)))
    assert intact.code == 0, intact.err
    below = replace(asked, fault_below=str(bundle))
    cases = [replace(below, fault_at=k) for k in range(1, intact.operations + 1)]
    cases += [replace(asked, allocation_at=k) for k in range(1, intact.allocations + 1)]
    cases += [replace(asked, most_memory_bytes=(64 << 20) * k // _LIMITS) for k in range(_LIMITS)]
    for case in _spread(cases, count, first):
        outcome = worker.ask(case)
        yield _what(case), outcome, _run_problem(outcome, intact)


def _spread(cases: list[Question], count: int, first: int) -> Iterator[Question]:
    number = min(count, len(cases))
    yield from (cases[(first + i * len(cases) // number) % len(cases)] for i in range(number))


def _what(case: Question) -> str:
    if case.fault_at:
        return f"operation {case.fault_at}" + (" and all writes after it" if case.fault_stays else "")
    if case.allocation_at:
        return f"allocation {case.allocation_at}"
    size = f"{case.most_file_bytes} bytes a file" if case.most_file_bytes >= 0 else f"{case.most_memory_bytes} bytes"
    return f"at most {size}"


def _compile_problem(outcome: Outcome, out: Path, wanted: bytes) -> str:
    """What is wrong with how a compile ended, or ""."""
    beside = [path.name for path in out.parent.iterdir() if path != out]
    if beside:
        return f"it left {beside}; it ended with {outcome.code}: {outcome.err[-200:]!r}"
    if outcome.code == 0:
        try:
            Bundle(out).verify_all()
        except (UserError, OSError) as error:
            return f"exit code 0, but {error}"
        return "" if (out / "manifest.json").read_bytes() == wanted else "exit code 0, but another bundle"
    if out.exists():
        return f"it ended with {outcome.code}, and yet there is a bundle: {outcome.err[-200:]!r}"
    return _one_line(outcome, lambda line: line.startswith("hetero-sd: error: "))


def _run_problem(outcome: Outcome, intact: Outcome) -> str:
    """What is wrong with how a run ended, or ""."""
    if outcome.code == 0:
        same = tokens(outcome) == tokens(intact)
        return "" if same else f"other tokens: {outcome.out[:200]!r}"
    return _one_line(outcome, lambda line: line.startswith("run.py: error: "))


def _one_line(outcome: Outcome, said: Callable[[str], bool]) -> str:
    lines = [line for line in outcome.err.splitlines() if not line.startswith("  ")]  # progress is indented
    if outcome.code == 2 and len(lines) == 1 and said(lines[0]):
        return ""
    return f"it ended with {outcome.code}: {outcome.err[-400:]!r}"
