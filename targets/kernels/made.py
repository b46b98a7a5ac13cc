"""Calling a kernel's maker."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from targets.memory import lacks_memory


def made(maker: Callable[..., Any], tile: Any, sizes: dict[str, Any]) -> Any:
    """What a maker makes, called in a thread of its own: TVM's parser reads the source of all callers, there few."""
    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(maker, tile, **sizes).result()
        except Exception as error:  # TVM's parser makes another error of a MemoryError, and TVM forgets which
            if lacks_memory(error):
                raise MemoryError from error
            raise
