"""Runs `hetero-sd` in processes that may be killed or denied something: each a copy of one that imported everything.

A line of JSON in, an answer out, as the dataclasses Question and Outcome say. The copy compiles as the command does:
import, lowering, code generation, linking, writing. With "generate", no kernel is taken from the user's cache. With
"narrow", a compile has entry points of one token alone and prefill, which takes a third of the time, and few files of
Python.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import asdict, replace
from typing import Any

import onnx_ir  # noqa: F401
import tvm  # noqa: F401
from tvm import relax  # noqa: F401

import passes.onnx
import passes.pipeline  # noqa: F401
from hetero_sd import cli
from hetero_sd.compile import bundle as bundle_module
from hetero_sd.compile import compile as _compile  # noqa: F401
from hetero_sd.compile import plan as plan_module
from hetero_sd.runtime import run
from targets.kernels.kernel_cache import KernelCache
from tests.attack.workers import Outcome, Question


class Counted(ctypes.Structure):
    """What faults.c counts, in memory that the copies share."""

    _fields_ = (
        ("operations", ctypes.c_long),
        ("allocations", ctypes.c_long),
        ("failed", ctypes.c_char * 512),
    )


def faults() -> Any:
    """The library of faults.c, where it was preloaded."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "hsd_faults_arm"):
        return None
    library.hsd_faults_counted.restype = ctypes.POINTER(Counted)
    return library


def narrow() -> None:
    """Plans have the entry point of one token alone."""
    made = plan_module._target_widths

    def one(*given: Any) -> tuple[int, ...]:
        return made(*given)[:1]

    plan_module._target_widths = one
    plan_module.DRAFT_WIDTHS = (1,)
    bundle_module._DEVICE_PACKAGES = (
        "hetero_sd/__init__.py",
        "hetero_sd/runtime/text",
    )  # each file is another operation


def child(question: Question) -> int:
    """The copy's part: the command's exit code."""
    os.setsid()
    if question.most_file_bytes >= 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (question.most_file_bytes, resource.RLIM_INFINITY))
    if question.most_memory_bytes >= 0:
        with open("/proc/self/statm", encoding="ascii") as file:
            most = int(file.read().split()[0]) * resource.getpagesize() + question.most_memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if question.allocation_at:  # memory is denied where a limit is set: one that is far away
        resource.setrlimit(resource.RLIMIT_AS, (1 << 45, 1 << 45))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    library = faults()
    if library is not None:  # allocations are counted in one order
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if library is not None:
        library.hsd_faults_arm(
            *(question.fault_below.encode(), ctypes.c_long(question.fault_at), int(question.fault_stays)),
            ctypes.c_long(question.allocation_at),
        )
    sys.argv[1:] = question.arguments
    try:
        if question.arguments[0] == "run.py":
            return run.main(question.arguments[1], question.arguments[2:])
        return cli.main()
    finally:
        if library is not None:
            library.hsd_faults_arm(b"", ctypes.c_long(0), 0, ctypes.c_long(0))


def ask(question: Question) -> Outcome:
    library = faults()
    if library is not None:
        library.hsd_faults_counted()  # before the fork, so that it is shared
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.monotonic()
        pid = os.fork()
        if pid == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = 1
            try:
                code = child(question)
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            atexit._run_exitfuncs()  # what the end of Python does; that of C waits for threads which no copy has
            os._exit(code)
        timer = None
        if question.kill_after_s is not None:
            kill = os.killpg if question.kill_group else os.kill
            timer = threading.Timer(question.kill_after_s, kill, (pid, signal.SIGKILL))
            timer.start()
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie, so that no other is killed
        if timer is not None:
            timer.cancel()
            timer.join()
        _, code = os.waitpid(pid, 0)
        with contextlib.suppress(ChildProcessError):  # what it had started ends by itself
            while True:
                os.wait()
        assert status is not None
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace"))
        counted = Counted() if library is None else library.hsd_faults_counted().contents
        return Outcome(
            *(os.waitstatus_to_exitcode(code), *texts, time.monotonic() - begin),
            *(counted.operations, counted.allocations, counted.failed.decode("utf-8", "replace")),
        )


def answer(line: str) -> str:
    given = Question(**json.loads(line))
    return json.dumps(asdict(ask(replace(given, arguments=tuple(given.arguments)))))


if __name__ == "__main__":
    if "narrow" in sys.argv:
        narrow()
    if "generate" in sys.argv:
        KernelCache.of_user = staticmethod(lambda: KernelCache(None))
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what a killed process started is waited for, too
    replies = os.dup(1)
    os.dup2(2, 1)
    os.write(replies, b"ready\n")
    for question in sys.stdin:
        os.write(replies, answer(question).encode() + b"\n")
