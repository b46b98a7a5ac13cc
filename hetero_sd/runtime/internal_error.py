"""What the commands say of an unexpected error: one line and exit code 70, never a traceback.

HSD_DEBUG=1 in the environment shows the traceback before it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from targets.errors import UserError, wanting
from targets.memory import lacks_memory, short_note

EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
USER_EXIT_CODE = 2
_ROOT = Path(__file__).resolve().parents[2]
_STEP = "_hetero_sd_step"
_LONGEST = 300  # characters of an error's own text


@contextmanager
def step(what: str) -> Iterator[None]:
    """Name what is being done, for the message about an exception that leaves the block; the innermost name counts."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, _STEP):
            setattr(error, _STEP, what)
        raise


def report(program: str, doing: str, error: BaseException) -> int:
    """Print one line about an unexpected exception to standard error and return the exit code.

    Args:
        program: the command's name, the line begins with it.
        doing: what it was doing, where no `step` says more.
        error: the exception. One of the operating system (no space, no permission) and a lack of memory are no fault of
            this project, also where a library says them in an error of its own: they are said like a mistake of the
            user, with exit code 2.
    """
    show_traceback(error)
    doing = getattr(error, _STEP, doing)
    if lacks_memory(error):
        print(f"{program}: error: out of memory ({doing})", file=sys.stderr)
        return USER_EXIT_CODE
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename is not None else ""
        print(f"{program}: error: {where}{error.strerror} ({doing})", file=sys.stderr)
        return USER_EXIT_CODE
    if (lacking := wanting(str(error))) is not None:
        print(f"{program}: error: {one_line(lacking)} ({doing})", file=sys.stderr)
        return USER_EXIT_CODE
    shown = one_line(f"{type(error).__name__}: {error}")
    if note := short_note(error):
        print(f"{program}: error: {note}{shown} ({doing})", file=sys.stderr)
        return USER_EXIT_CODE
    print(
        f"{program}: internal error ({doing}): {shown}{_place(error)}; this is a fault of hetero-sd: please report it "
        "with what HSD_DEBUG=1 prints (CONTRIBUTING.md says where)",
        file=sys.stderr,
    )
    return EXIT_CODE


def check_streams() -> None:
    """Refuse a closed standard output; a closed standard error goes nowhere.

    Raises:
        UserError: standard output is closed.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # for the life of the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")
        raise UserError("standard output is closed: give a terminal, a file or a pipe")


def settle_output() -> OSError | None:
    """Write out what was printed; where that fails, drop it, so that the end of the process does not fail again."""
    try:
        sys.stdout.flush()
        return None
    except OSError as error:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        return error


def show_traceback(error: BaseException) -> None:
    """Print the traceback if HSD_DEBUG asks for it."""
    if os.environ.get("HSD_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(type(error), error, error.__traceback__)


def one_line(text: str) -> str:
    """The text without line breaks and control characters, and not too long."""
    shown = " ".join(text.split())
    shown = shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "..."
    return "".join(c if c.isprintable() else "?" for c in shown)


def _place(error: BaseException) -> str:
    """The innermost line of this project in the traceback: " (passes/pipeline.py:120)"."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        try:
            return f" ({Path(frame.filename).resolve().relative_to(_ROOT)}:{frame.lineno})"
        except ValueError:
            continue
    return ""
