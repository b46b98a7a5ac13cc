"""What a run did, and when, as a Chrome trace: open it in Perfetto or chrome://tracing beside `predict --trace`'s.

A lane is a processor. Target and drafter share one where they take turns on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hetero_sd.runtime.decode.trace import Span, Trace

_NAMES = {
    "catch_up": "read text",
    "confidence": "tell confidence",
    "dispatch": "accept, loop",
    "deciding": "decide",
    "draft": "draft",
    "prefill": "accept, loop",
    "sampling": "sample",
    "transfer": "hand over",
    "wait": "wait for drafts",
}


def chrome_trace(traces: Sequence[Trace], board: str, lanes: Mapping[str, str]) -> dict[str, Any]:
    """The trace: process = the board, thread = a processor, times in microseconds from the first span.

    Args:
        traces: of the answers, recorded with spans.
        board: its name.
        lanes: the processor of each role, "target" and "draft".
    """
    named = [pair for trace in traces for pair in _named(trace)]
    start = min((span.begin_s for span, _ in named), default=0.0)
    titles = list(dict.fromkeys(lanes.get(span.role, span.role) for span, _ in named))
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": f"{board} (measured)"}}
    ]
    for tid, title in enumerate(titles, 1):
        events.append({"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": title}})
    for span, name in named:
        events.append(
            {
                "ph": "X",
                "name": name,
                "cat": "measured",
                "pid": 1,
                "tid": titles.index(lanes.get(span.role, span.role)) + 1,
                "ts": round(1e6 * (span.begin_s - start), 3),
                "dur": round(1e6 * (span.end_s - span.begin_s), 3),
                "args": {"term": span.term},
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _named(trace: Trace) -> Iterator[tuple[Span, str]]:
    """Spans in the order in which they began, each with its name; the target's first step reads the prompt."""
    steps = -1
    for span in sorted(trace.spans or (), key=lambda span: span.begin_s):
        name = _NAMES.get(span.term, span.term)
        if span.term == "verify":
            drafted = trace.rounds[steps].drafted if 0 <= steps < len(trace.rounds) else 0
            name = f"verify {drafted + 1} tokens" if drafted else "decode 1 token"
            name = f"read {trace.prompt_tokens - trace.kept_tokens} tokens" if steps < 0 else name
            steps += 1
        yield span, name
