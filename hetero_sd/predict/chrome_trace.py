"""One predicted round as a Chrome trace: open it in Perfetto or chrome://tracing.

Lanes are processors. Sequential rounds stand one after the other; in the overlapped mode the drafter's lane runs on
while the target verifies, as when everything is accepted.
"""

from __future__ import annotations

from typing import Any

from costmodel.contention import Load as _Load
from costmodel.contention import side_by_side, together_bytes_per_s
from costmodel.decoder import DecoderSpec
from costmodel.placement import Placement, shared_cluster
from costmodel.question import OVERLAPPED
from costmodel.roofline import GpuSlice, dram_bytes
from hetero_sd.predict.predict import Prediction

Span = tuple[str, str, float, float, str]  # lane, name, start, duration in seconds, explanation


def chrome_trace(p: Prediction) -> dict[str, Any]:
    """The trace: process = the board, thread = a processor, times in microseconds."""
    spans = round_spans(p)
    lanes = list(dict.fromkeys(span[0] for span in spans))
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": f"{p.question.board.name} (predicted)"}}
    ]
    for tid, lane in enumerate(lanes, 1):
        events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": lane}})
    for lane, name, start, duration, why in spans:
        events.append(
            {
                "ph": "X",
                "name": name,
                "cat": "predicted",
                "pid": 1,
                "tid": lanes.index(lane) + 1,
                "ts": round(1e6 * start, 3),
                "dur": round(1e6 * duration, 3),
                "args": {"explanation": why},
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def round_spans(p: Prediction) -> list[Span]:
    """The spans of one round of the chosen variant, times from its start."""
    best, clock = p.decision.best, 0.0
    spans: list[Span] = []
    if best.mode == OVERLAPPED and best.draft is not None and best.draft_placement is not None:
        return _overlapped_spans(p)
    if best.draft is not None and best.draft_placement is not None:
        for i in range(best.gamma):
            clock = _step(p, spans, best.draft, best.draft_placement, 1, clock, f"draft token {i + 1}")
    name = f"verify {best.gamma + 1} tokens" if best.gamma else "decode 1 token"
    clock = _step(p, spans, best.target, best.target_placement, best.gamma + 1, clock, name)
    spans.append((_cpu_lane(p), "accept, loop", clock, best.round.other_s, "the decoding loop around a round"))
    return spans


def _step(
    p: Prediction, spans: list[Span], spec: DecoderSpec, placement: Placement, n: int, clock: float, name: str
) -> float:
    """Append a step, one span for each segment; return when it ends."""
    costs, before = p.search.costs(spec), None
    for segment in placement.segments:
        estimate = p.search.roofline.step_overhead(segment.processor)
        if before is not None:
            estimate = estimate + p.search.roofline.border(before, segment.processor, n * spec.hidden)
        for unit in costs.units(segment.processor, n)[segment.start : segment.end]:
            estimate = estimate + unit
        spans.append((_lane(segment.processor), name, clock, estimate.total_s, estimate.explain()))
        clock += estimate.total_s
        before = segment.processor
    return clock


def _overlapped_spans(p: Prediction) -> list[Span]:
    best = p.decision.best
    assert best.draft is not None
    assert best.draft_placement is not None
    here, there = best.target_placement.segments[0].processor, best.draft_placement.segments[0].processor
    loads = []
    for spec, processor, n in ((best.target, here, best.gamma + 1), (best.draft, there, 1)):
        costs = p.search.costs(spec)
        e = costs.step(costs.whole(processor), n)
        loads.append(_Load(e.total_s, e.memory_s, dram_bytes(costs.counted(n))))
    limit = together_bytes_per_s(p.question.board, p.question.factors, shared_cluster(here, there))
    verified, drafted = side_by_side(loads[0], loads[1] * (best.gamma + 1), limit)
    lane = f"{_lane(there)}, drafter" if _lane(here) == _lane(there) else _lane(there)
    each = drafted / (best.gamma + 1)
    spans: list[Span] = [(_lane(here), f"verify {best.gamma + 1} tokens", 0.0, verified, "beside the drafter")]
    for i in range(best.gamma + 1):
        name = "guess the target's token" if i == 0 else f"draft token {i} of the next round"
        spans.append((lane, name, i * each, each, "beside the target"))
    spans.append((_lane(here), "accept, loop", verified, best.round.other_s, "the decoding loop around a round"))
    return spans


def _lane(processor: Any) -> str:
    return f"GPU {processor.gpu.model}" if isinstance(processor, GpuSlice) else f"CPU {processor.family}"


def _cpu_lane(p: Prediction) -> str:
    return f"CPU {p.question.board.clusters[0].name}"
