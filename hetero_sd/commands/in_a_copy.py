"""A command in a copy of its process, so that an end which no Python code sees gives one line and leaves nothing.

LLVM ends the process where the disk is full or memory is short, and so does the system where memory runs out; where a
limit is set (`ulimit -v`), libraries that do not expect to be denied memory crash. The copy does the work; the first
process waits, says how it ended where the copy could not, and removes what it left. What native code prints is kept
from the terminal until then.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from types import FrameType
from typing import BinaryIO

from hetero_sd.runtime.internal_error import EXIT_CODE, USER_EXIT_CODE, one_line
from targets import memory
from targets.errors import wanting

_PR_SET_PDEATHSIG = 1
_FORWARDED = (signal.SIGTERM, signal.SIGHUP)
_BY_THE_SYSTEM = (signal.SIGKILL, signal.SIGXCPU, signal.SIGBUS)
_WITHOUT_MEMORY = (signal.SIGSEGV, signal.SIGABRT)  # how code ends that does not expect to be denied memory
_BY_THE_USER = (signal.SIGINT, signal.SIGQUIT, *_FORWARDED)


def in_a_copy(program: str, doing: str, clean: Callable[[], None]) -> int | None:
    """Go on in a copy of this process.

    Args:
        program: the command's name, the line begins with it.
        doing: what it does, for the line.
        clean: called in the first process where the copy ended without Python's knowing.

    Returns:
        None in the copy, whose end is the command's; in the first process the exit code, once the copy ended.
    """
    ended, ends = os.pipe()
    native = tempfile.TemporaryFile()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: those of numpy's BLAS know forks
        before = os.getpid()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)  # they wait until they can be forwarded
        try:
            copy = os.fork()
        except OSError:  # no process to be had: then without
            copy = -1
    if copy <= 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(ended)
        if copy == 0:
            _settle(ends, native, before)
        else:
            os.close(ends)
        native.close()
        return None
    os.close(ends)
    code = _wait(copy, mask)
    with os.fdopen(ended, "rb") as pipe:
        python_knows = bool(pipe.read(1))
    native.seek(0)
    said = native.read().decode("utf-8", "replace")
    native.close()
    if said and (code == 0 or os.environ.get("HSD_DEBUG", "0") not in ("", "0")):
        print(said, end="", file=sys.stderr)
    if not python_knows:
        clean()
        code = _report(program, doing, code, said)
    return code


def _settle(ends: int, native: BinaryIO, parent: int) -> None:
    """The copy's part: what native code prints goes to a file, and at a regular end of Python a byte into a pipe."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))  # a `kill -9` is meant for both
    if os.getppid() != parent:
        os._exit(EXIT_CODE)
    if sys.stderr is not None:
        sys.stderr = open(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    os.dup2(native.fileno(), 2)
    atexit.register(os.write, ends, b".")


def _wait(copy: int, mask: Iterable[int]) -> int:
    """The exit code of the copy, negative for a signal; signals to this process are the copy's.

    Those that are forwarded are blocked until then; `mask` has the signals that stay so.
    """

    def forward(number: int, _frame: FrameType | None) -> None:
        os.kill(copy, number)

    handlers = {number: signal.signal(number, forward) for number in _FORWARDED}
    handlers[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal gives it to both
    handlers[signal.SIGQUIT] = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _report(program: str, doing: str, code: int, said: str) -> int:
    """Say in one line how the copy ended, and return the exit code; a user's signal ends this process, too."""
    number = -code
    if number in _BY_THE_USER:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    lines = [line for line in said.splitlines() if line.strip()]
    if (lacking := wanting(said)) is not None:
        print(f"{program}: error: {one_line(lacking)} ({doing})", file=sys.stderr)
        return USER_EXIT_CODE
    if number in _BY_THE_SYSTEM or (number in _WITHOUT_MEMORY and memory.is_limited()):
        name = signal.Signals(number).name
        print(f"{program}: error: the system ended it ({name}): is there enough memory? ({doing})", file=sys.stderr)
        return USER_EXIT_CODE
    how = f"signal {number}" if number > 0 else f"exit code {code}"
    last = f": {one_line(lines[-1])}" if lines else ""
    print(f"{program}: internal error ({doing}): it ended by {how}{last}; HSD_DEBUG=1 shows more", file=sys.stderr)
    return EXIT_CODE
