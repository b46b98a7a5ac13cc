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


def turns_of(roofline: Roofline) -> Turns:
    """On the first cluster of the board, where the loop runs."""
    f, hz = roofline.factors, roofline.board.clusters[0].frequency_ghz * 1e9
    return Turns(f.turn_cycles / hz, f.draft_turn_cycles / hz, f.verify_turn_cycles / hz, f.turn_start_cycles / hz)
