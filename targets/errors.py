"""The one exception for a user's mistake; it lives in the leftmost package so that every layer can raise it."""

from __future__ import annotations


class UserError(Exception):
    """Something the user gave is wrong; the message is one line: what is wrong, where, what to do.

    The command line prints the message after ``error:`` and exits with code 2, without a traceback.
    """


def last_line(error: BaseException) -> str:
    """What an exception of TVM says, without its traceback."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


_WANTING = (
    *("No space left", "File too large", "Disk quota", "IO failure", "Input/output error", "Read-only file system"),
    *("out of memory", "bad_alloc", "Cannot allocate memory", "memory exhausted", "Resource temporarily unavailable"),
)


def wanting(text: str) -> str | None:
    """The first line of what a native program or library printed that says what the machine lacks, or None."""
    return next((line.strip() for line in text.splitlines() if any(said in line for said in _WANTING)), None)
