"""One predicted round as a Chrome trace: open it in Perfetto or chrome://tracing.

Lanes are processors; steps stand one after the other, of overlapped rounds those of each lane.
"""

from __future__ import annotations

from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.placement import Placement
from costmodel.processor import GpuSlice
from costmodel.schema.plan import OVERLAPPED
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
    """The spans of one round of the chosen variant, times from its start.

    Of overlapped rounds it is one after full acceptance: the drafter guesses the target's own token and makes the next
    drafts while the target verifies; each takes what it takes alone.
    """
    best, clock = p.decision.best, 0.0  # the drafter takes in one token; after full acceptance two (story.outcomes)
    spans: list[Span] = []
    if best.draft is not None and best.draft_placement is not None:
        overlapped = best.mode == OVERLAPPED
        for i in range(best.gamma + overlapped):
            name = f"draft token {i + 1}{' of the next round' * overlapped}"
            clock = _step(p, spans, best.draft, best.draft_placement, 1, clock, name)
    name = f"verify {best.gamma + 1} tokens" if best.gamma else "decode 1 token"
    begin, drafted = (0.0, clock) if best.mode == OVERLAPPED else (clock, 0.0)
    clock = max(drafted, _step(p, spans, best.target, best.target_placement, best.gamma + 1, begin, name))
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
            estimate = estimate + p.search.roofline.border(before, segment.processor, n * spec.border)
        for unit in costs.units(segment.processor, n)[segment.start : segment.end]:
            estimate = estimate + unit
        spans.append((_lane(segment.processor), name, clock, estimate.total_s, estimate.explain()))
        clock += estimate.total_s
        before = segment.processor
    return clock


def _lane(processor: Any) -> str:
    return f"GPU {processor.gpu.model}" if isinstance(processor, GpuSlice) else f"CPU {processor.family}"


def _cpu_lane(p: Prediction) -> str:
    return f"CPU {p.question.board.clusters[0].name}"
