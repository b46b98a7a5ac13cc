"""Asking for a cache line before it is read: what kernels that read more than caches hold do on x86-64.

A line is asked for by a load that waits for nothing. Where a core has as many of them under way as it can, the next one
waits, and loads behind it: they go between other work.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


def ask(place: Any) -> None:
    """Ask for the line of an element of a buffer, into all levels of caches; one that does not exist does no harm."""
    prefetch = T.llvm_lookup_intrinsic_id("llvm.prefetch")
    T.evaluate(T.call_llvm_intrin(prefetch, T.address_of(place), 0, 3, 1, dtype="void"))
