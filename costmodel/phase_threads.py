"""Threads of a prompt: reading one computes many rows for each weight, and gains by threads where one row does not.

Where reads fall with threads (a Raspberry Pi 5), one thread decodes fastest and four read a prompt three times as fast;
the runtime's pool changes its threads between two calls without starting one (targets/cpu/pool).
"""

from __future__ import annotations

from costmodel.model_costs import ModelCosts
from costmodel.placement import Placement
from costmodel.processor import CpuSlice

_GAIN = 0.02  # of a chunk's time; less is no reason for other threads


def prompt_placement(costs: ModelCosts, placement: Placement, chunk: int) -> Placement:
    """The placement with as many threads of its cluster as read a chunk of a prompt fastest.

    The placement itself where the model is not whole on the cores of one cluster, or nothing is gained.
    """
    processor = placement.segments[0].processor
    if not placement.whole or not isinstance(processor, CpuSlice) or len(processor.parts) > 1:
        return placement
    cluster = processor.parts[0][0]
    every = [costs.whole(CpuSlice(((cluster, threads),))) for threads in range(1, cluster.count + 1)]
    best = min(every, key=lambda p: costs.prompt_chunk_s(p, chunk))
    gains = costs.prompt_chunk_s(best, chunk) < (1 - _GAIN) * costs.prompt_chunk_s(placement, chunk)
    return best if gains else placement
