"""What a round of two models in turn adds to the loop and to each step; `run.py --calibrate` measures it on rounds."""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.roofline import Roofline


@dataclass(frozen=True)
class Turns:
    """Seconds that are added: to the loop of a round, to each draft step, to the target's step, and once to a text."""

    loop_s: float
    draft_s: float
    verify_s: float
    start_s: float


def kept_bytes(lost_s: float, memory_bytes_per_s: float, cache_bytes_per_s: float) -> float:
    """Bytes of a model that caches keep from step to step, by what its steps lose where another model runs between.

    They come from memory then, where they came from a cache: lost = kept / memory - kept / cache.
    """
    if cache_bytes_per_s <= memory_bytes_per_s:
        return 0.0
    return max(0.0, lost_s) / (1 / memory_bytes_per_s - 1 / cache_bytes_per_s)


def turns_of(roofline: Roofline) -> Turns:
    """On the first cluster of the board, where the loop runs."""
    f, hz = roofline.factors, roofline.board.clusters[0].frequency_ghz * 1e9
    return Turns(f.turn_cycles / hz, f.draft_turn_cycles / hz, f.verify_turn_cycles / hz, f.turn_start_cycles / hz)
