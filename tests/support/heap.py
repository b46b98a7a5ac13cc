"""How much of the heap is in use, as glibc counts it."""

from __future__ import annotations

import ctypes
import gc


class MallInfo(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def heap_bytes() -> int:
    """In use, mapped blocks among them: resident bytes would hide a leak in what is free."""
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo
    seen = mallinfo2()
    return int(seen.uordblks + seen.hblkhd)
