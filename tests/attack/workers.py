"""Processes of compile_worker.py, and the exports that the attacks compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXPORTS = ROOT / "tests" / "data" / "exports"
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Question:
    """A command and what happens to it.

    Attributes:
        arguments: of `hetero-sd`.
        kill_after_s: when the process is killed; None: never.
        kill_group: the processes that it started (the linker) die with it.
        fault_below: folder in which the operations of faults.c are counted, and fail; "" counts none.
        fault_at: the operation that fails, from 1; 0: none does.
        fault_stays: all operations that write fail from then on.
        allocation_at: the large allocation that fails, from 1; 0: none does.
        most_file_bytes: RLIMIT_FSIZE, or -1.
        most_memory_bytes: RLIMIT_AS beyond what the process has when it begins, or -1.
    """

    arguments: tuple[str, ...]
    kill_after_s: float | None = None
    kill_group: bool = False
    fault_below: str = ""
    fault_at: int = 0
    fault_stays: bool = False
    allocation_at: int = 0
    most_file_bytes: int = -1
    most_memory_bytes: int = -1


@dataclass(frozen=True)
class Outcome:
    """How a process ended: `code` is negative for a signal; `operations` were counted, `failed` was denied."""

    code: int
    out: str
    err: str
    seconds: float
    operations: int
    allocations: int
    failed: str


def compile_arguments(out: Path) -> tuple[str, ...]:
    """A small compile: a decoder of one layer for this machine."""
    export, tokenizer = EXPORTS / "llama-drafter-dynamo-fp32" / "model.onnx", EXPORTS / "llama-dynamo-fp32"
    options = ["--tokenizer", tokenizer, "--board", "host", "--context", "64", "--out", out]
    return tuple(map(str, ["compile", export, *options]))


def run_arguments(bundle: Path) -> tuple[str, ...]:
    """A run of a bundle, in place of a command of `hetero-sd`."""
    return ("run.py", str(bundle), "--prompt", "Once upon a time", "--json", "--max-new-tokens", "12")


def tokens(outcome: Outcome) -> list[list[int]]:
    """What a run answered."""
    return [json.loads(line)["token_ids"] for line in outcome.out.splitlines()]


class CompileWorker:
    """A process of compile_worker.py, with temporary files in a folder of its own."""

    def __init__(
        self, scratch: Path, preload: Path | None = None, generate: bool = False, more: Mapping[str, str] | None = None
    ) -> None:
        scratch.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
        environment |= {"OPENBLAS_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(scratch.parent / "none")}
        environment |= more or {}
        if preload is not None:
            environment["LD_PRELOAD"] = str(preload)
        command = [sys.executable, str(HERE / "compile_worker.py"), "narrow", *(["generate"] if generate else [])]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, question: Question) -> Outcome:
        """How a command ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asdict(question)) + "\n")
        self.process.stdin.flush()
        return Outcome(**json.loads(self.process.stdout.readline()))

    def __enter__(self) -> CompileWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
