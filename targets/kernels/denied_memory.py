"""Code generation that was denied memory fails, even where a library made do without.

TVM asks Z3 what its own rules cannot prove. Where Z3 gets no memory TVM takes it as "not proved" and generates other
code, correct but not the same bytes. The C library leaves ENOMEM in the thread's errno, and what computes alone does
not change it afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections.abc import Iterator


@contextlib.contextmanager
def no_memory_denied() -> Iterator[None]:
    """Around code generation, in its thread.

    Raises:
        MemoryError: the C library denied memory in the block.
    """
    location = ctypes.CDLL(None).__errno_location
    location.restype = ctypes.POINTER(ctypes.c_int)
    number = location().contents
    number.value = 0
    yield
    if number.value == errno.ENOMEM:
        raise MemoryError("code generation was denied memory")
