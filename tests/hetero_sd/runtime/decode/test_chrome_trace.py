"""The trace of a run: lanes are processors, spans are what was booked, nothing overlaps within a lane."""

from __future__ import annotations

from itertools import pairwise

import pytest

from hetero_sd.runtime.decode.chrome_trace import chrome_trace
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request
from hetero_sd.runtime.decode.overlapped.draft_thread import DraftThread
from hetero_sd.runtime.decode.overlapped.target_side import Overlap, speculate_overlapped
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Round, Span, Trace

LANES = {"target": "CPU a76", "draft": "GPU"}


def test_by_hand() -> None:
    spans = [
        Span("target", "verify", 10.0, 10.5),
        Span("draft", "draft", 10.5, 10.75),
        Span("target", "verify", 10.75, 11.0),
        Span("target", "dispatch", 11.0, 11.125),
    ]
    rounds = [Round(2, 1, 0.25, 0.25, 0.0, 0.125)]
    found = chrome_trace([Trace(prompt_tokens=7, rounds=rounds, spans=spans)], "rk3588", LANES)["traceEvents"]
    assert [e["args"]["name"] for e in found if e["ph"] == "M"] == ["rk3588 (measured)", "CPU a76", "GPU"]
    assert [(e["name"], e["tid"], e["ts"], e["dur"]) for e in found if e["ph"] == "X"] == [
        ("read 7 tokens", 1, 0.0, 5e5),
        ("draft", 2, 5e5, 2.5e5),
        ("verify 3 tokens", 1, 7.5e5, 2.5e5),
        ("accept, loop", 1, 1e6, 1.25e5),
    ]


@pytest.mark.parametrize("overlapped", [False, True])
def test_every_booking_of_a_run_is_in_its_lane(pair, overlapped: bool) -> None:
    target, draft = pair(5)
    request, trace = Request(24), Trace(spans=[])
    drafter = ModelDrafter(draft, target.vocab, request.sampling)
    if overlapped:
        with DraftThread() as thread:
            list(speculate_overlapped(target, drafter, [1, 2, 3], request, Overlap(thread, 3, 2), trace))
    else:
        list(speculate(target, drafter, [1, 2, 3], request, FixedGamma(3), trace))
    assert trace.spans is not None
    verified = [s.end_s - s.begin_s for s in trace.spans if s.term == "verify"][1:]  # the first one reads the prompt
    assert verified == pytest.approx([r.verify_s for r in trace.rounds])
    events = [e for e in chrome_trace([trace], "host", LANES)["traceEvents"] if e["ph"] == "X"]
    for lane in (1, 2):
        here = sorted((e["ts"], e["dur"]) for e in events if e["tid"] == lane and e["args"]["term"] != "transfer")
        assert here
        assert all(ts + dur <= after + 0.01 for (ts, dur), (after, _) in pairwise(here))
    assert ("wait" in {e["args"]["term"] for e in events}) == overlapped
    assert Trace().spans is None  # nobody asked
