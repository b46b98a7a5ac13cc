"""The first rows of a model's KV caches, on any processor: read for a file, and put back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from hetero_sd.runtime.model.segments import Chain


def first_rows(chain: Chain, context: int, count: int) -> list[npt.NDArray[Any]]:
    """Of each cache ``[kv_heads, ...]`` what holds the rows: its own memory on the CPU, a copy elsewhere."""
    return [chain.host(cache)[0, :, : -(-count * cache.shape[2] // context)] for cache in chain.caches]


def put_first_rows(chain: Chain, rows: Sequence[npt.NDArray[Any]]) -> None:
    """Put what `first_rows` gave into the caches."""
    for cache, new in zip(chain.caches, rows, strict=True):
        whole = chain.host(cache)
        if not chain.is_on_cpu(cache):
            whole = whole.copy()
        whole[0, :, : new.shape[1]] = new
        if not chain.is_on_cpu(cache):
            cache.copyfrom(whole)
