"""What telling a drafted token's confidence takes: its probability, from all logits of the drafter's row."""

from __future__ import annotations

from costmodel.roofline import Roofline

_LOGIT_CYCLES = 2.0  # numpy: difference, exponential and sum in float32 (0.5 ns a logit measured on Zen 5)


def confidence_s(roofline: Roofline, vocab: int) -> float:
    """Seconds a token, on one thread of the first cluster.

    The logits are fetched and looked at from Python, which is as much of it as stands around a step (11 us of each were
    measured on Zen 5).
    """
    hz = roofline.board.clusters[0].frequency_ghz * 1e9
    return (roofline.factors.step_cycles + vocab * _LOGIT_CYCLES) / hz
