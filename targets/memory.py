"""What the system lets this process have of memory, and which errors come of having none.

Memory is denied only where there is a limit (`ulimit -v`, strict overcommit); without one the system ends a process.
"""

from __future__ import annotations

import dis
import errno
import resource
from collections.abc import Iterator
from types import TracebackType

SHORT_BYTES = 64 << 20
_IMPORTS = {dis.opmap[name] for name in ("IMPORT_NAME", "IMPORT_FROM")}
_SAID = ("bad_alloc", "out of memory", "failed to map segment", "Cannot allocate memory")


def is_limited() -> bool:
    """Whether the system denies this process memory beyond a limit."""
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return True
    try:
        with open("/proc/sys/vm/overcommit_memory", encoding="ascii") as file:
            return file.read().strip() == "2"
    except OSError:
        return False


def is_short(size: int) -> bool:
    """Whether the system denies this process so many bytes; run.py carries the text of this function."""
    try:
        import mmap

        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except (ImportError, MemoryError, OSError):
        return True
    return False


def short_note(error: BaseException) -> str:
    """What stands before an error's text that may come of the lack of memory; "" while there is some, or it says so."""
    if lacks_memory(error) or not is_short(SHORT_BYTES):
        return ""
    return f"out of memory? less than {SHORT_BYTES >> 20} MiB are left of what the system allows; it ended with: "


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error comes from a lack of memory, which libraries say in errors of their own.

    Where memory is limited this is any error in an import but that there is no such module: Python loses a MemoryError
    on the way, and what a library ran without one is half a library.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        denied = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        if denied or any(said in str(error) for said in _SAID):
            return True
        if not isinstance(error, ModuleNotFoundError) and _imports(error) and is_limited():
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _imports(error: BaseException) -> bool:
    """Whether an error came out of an import statement; importlib removes its own frames."""
    return any(
        trace.tb_frame.f_code.co_code[trace.tb_lasti] in _IMPORTS for trace in _frames(error) if trace.tb_lasti >= 0
    )


def _frames(error: BaseException) -> Iterator[TracebackType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace
        trace = trace.tb_next
