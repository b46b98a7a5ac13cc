"""Text from a stranger's program, with bounds that hold inside its loops: it runs in a copy of this process.

A signal's handler would not end `10 ** 10 ** 9` or `'x' * 10 ** 9`, which are one step to Python; the end of a process
does. A fork costs milliseconds, so that every prompt can have one; the copy does nothing but compute and write a pipe.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import time
import warnings
from collections.abc import Callable

MOST_SECONDS = 1.8  # with what is around it, less than 2
MOST_BYTES = 64 << 20  # of text
_MOST_MEMORY_BYTES = 512 << 20  # beyond what this process has
_MADE, _FAILED = b"+", b"-"


class CallFailed(Exception):
    """The program failed, or reached a bound; the message says how."""


def bounded_text(make: Callable[[], str], seconds: float = MOST_SECONDS, most_bytes: int = MOST_BYTES) -> str:
    """What ``make`` returns, computed in a copy of this process.

    Raises:
        CallFailed: it raised an exception (the message is its own), took longer, or made more text or memory.
        OSError: the system gives no process.
    """
    read_end, write_end = os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the copy uses none of them
            child = os.fork()
    except OSError:
        os.close(read_end)
        os.close(write_end)
        raise
    if child == 0:
        _compute(make, write_end)
    os.close(write_end)
    try:
        answer = _read(read_end, time.monotonic() + seconds, seconds, most_bytes)
    finally:
        os.close(read_end)
        os.kill(child, signal.SIGKILL)  # it ended, or is to end
        os.waitpid(child, 0)
    if not answer:
        raise CallFailed("it ended without an answer: it may need more memory than it may have")
    text = answer[1:].decode("utf-8", "replace")
    if answer[:1] == _FAILED:
        raise CallFailed(text)
    return text


def _compute(make: Callable[[], str], write_end: int) -> None:
    """The copy's part; it never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        _limit(resource.RLIMIT_AS, pages * os.sysconf("SC_PAGE_SIZE") + _MOST_MEMORY_BYTES)
        _limit(resource.RLIMIT_CPU, int(MOST_SECONDS) + 1)  # a parent was killed
        _limit(resource.RLIMIT_CORE, 0)
        try:
            answer = _MADE + make().encode("utf-8")
        except MemoryError:
            answer = _FAILED + b"out of memory"
        except Exception as error:
            answer = _FAILED + (str(error) or type(error).__name__).encode("utf-8", "replace")
        while answer:
            answer = answer[os.write(write_end, answer) :]
    finally:
        os._exit(0)


def _limit(kind: int, most: int) -> None:
    """Lower a limit of this process; one that is lower already stays."""
    least = min((most, *(limit for limit in resource.getrlimit(kind) if limit != resource.RLIM_INFINITY)))
    resource.setrlimit(kind, (least, least))


def _read(read_end: int, deadline: float, seconds: float, most_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    answers = select.poll()  # select() takes no file number above 1,023
    answers.register(read_end, select.POLLIN)
    while True:
        if not answers.poll(1e3 * max(0.0, deadline - time.monotonic())):
            raise CallFailed(f"it takes more than {seconds:g} s")
        piece = os.read(read_end, 1 << 16)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        size += len(piece)
        if size > most_bytes + 1:
            raise CallFailed(f"it makes more than {most_bytes} bytes")
