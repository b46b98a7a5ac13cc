"""What a compiled plan is predicted to cost: the block that `run.py --stats` prints beside the measured times.

Arithmetic over the board as it is described, so the same bundle comes out every time. Board `host` is not measured for
it; a calibrated board file gives better numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from costmodel.place import Place
from costmodel.placement import ModelCosts
from costmodel.roofline import CpuSlice, GpuSlice, Roofline
from costmodel.shape import DecoderShape
from costmodel.speculative import RoundCosts, sequential_round
from hetero_sd.plan import Plan
from targets.device import Board

ASSUMED_ALPHA = 0.8


def plan_prediction(board: Board, plan: Plan, shapes: Mapping[str, DecoderShape]) -> dict[str, Any]:
    """Seconds of the plan's steps at half of its context, by the names that hetero_sd/runtime/stats.py reads.

    A step of n tokens runs the narrowest entry point that holds them. The acceptance is an assumption until it is
    measured (`hetero-sd acceptance`, or the run itself).
    """
    roofline = Roofline(board)
    cluster = board.cluster(plan.cluster)
    cores = CpuSlice(((cluster, plan.threads),))
    gpu = GpuSlice(board.gpu, cluster) if board.gpu is not None else None
    costs = {role: ModelCosts(roofline, shape, max(1, plan.context // 2)) for role, shape in shapes.items()}
    placements = {role: costs[role].placed(Place.parse(plan.places[role]), cores, gpu) for role in shapes}
    widths = {"target": sorted(plan.target_widths), "draft": sorted(plan.draft_widths)}

    def step_s(role: str, n: int) -> float:
        whole, rest = divmod(n, widths[role][-1])
        width = next((w for w in widths[role] if w >= rest), 0) if rest else 0
        place = placements[role]
        each = costs[role].step_s(place, widths[role][-1]) if whole else 0.0
        return whole * each + (costs[role].step_s(place, width) if width else 0.0)

    one, two = (step_s("draft", n) for n in (1, 2)) if "draft" in shapes else (0.0, 0.0)
    gamma = plan.gamma if "draft" in shapes else 0
    overhead = roofline.round_overhead_s()
    terms = RoundCosts(one, two, lambda n: step_s("target", n), overhead)
    expected = sequential_round(ASSUMED_ALPHA, gamma, terms)
    return {
        "acceptance_rate": ASSUMED_ALPHA if gamma else None,
        "tokens_per_round": expected.tokens if gamma else None,
        "tokens_per_s": expected.tokens_per_s,
        "draft_step_s": expected.draft_s / gamma if gamma else None,
        "verify_step_s": {str(n): step_s("target", n) for n in range(1, widths["target"][-1] + 1)},
        "sampling_s": 0.0,
        "dispatch_s": overhead,
        "context": plan.context // 2,
    }
