"""The page /metrics, read as Prometheus reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from bundles import some_plan, some_prediction

from hetero_sd.runtime.serve.batch_counts import BatchCounts
from hetero_sd.runtime.serve.counts import Snapshot, TokenCounts
from hetero_sd.runtime.serve.engine import GenerationRequest, QueueFull
from hetero_sd.runtime.serve.metrics import metrics_text
from hetero_sd.runtime.serve.session_engine import SessionEngine
from hetero_sd.runtime.session import Session

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|Inf|NaN)"
_SAMPLE = re.compile(rf'([a-z_]+)(?:\{{([a-z_]+)="([a-z_]+)"\}})? ({_NUMBER})')


def read(text: str) -> dict[tuple[str, str], float]:
    """(family, label's value) -> number; each family has its help and type first, once."""
    assert text.endswith("\n")
    found: dict[tuple[str, str], float] = {}
    kinds: dict[str, str] = {}
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("# HELP "):
            name = line.split(" ")[2]
            assert lines[number + 1].startswith(f"# TYPE {name} ")
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds
            assert kind in ("counter", "gauge")
            assert name.endswith("_total") == (kind == "counter")
            kinds[name] = kind
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            assert sample[1] == list(kinds)[-1]
            key = (sample[1].removeprefix("hetero_sd_"), sample[3] or "")
            assert key not in found
            found[key] = float(sample[4])
    return found


def test_an_engine_that_did_nothing() -> None:
    zero = Snapshot({"answered": 0, "queue_full": 0}, TokenCounts(), 0.0, 0, 0, 4, 64, 0, None)
    found = read(metrics_text(zero))
    assert found["requests_total", "queue_full"] == 0
    assert ("tokens_per_second", "") not in found
    assert ("seconds_per_token", "measured") not in found


@pytest.mark.parametrize("line", ["x 1,5", 'x{a="b" 1', "x", "x one"])
def test_what_prometheus_does_not_read_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        read(f"# HELP x y\n# TYPE x gauge\n{line}\n")


def test_numbers_are_those_of_the_answers(letters: Callable[..., Session]) -> None:
    plan = some_plan(prediction=some_prediction(tokens_per_s=50.0, acceptance_rate=0.8))
    engine = SessionEngine(letters(drafts=True, plan=plan), 2, 60.0)
    ended: list[Any] = []

    def deliver(event: Any) -> None:
        ended.append(event)
        if len([e for e in ended if hasattr(e, "counts")]) == 3:
            engine.stop()

    for _ in range(3):
        engine.submit(GenerationRequest("hello", {"max_new_tokens": 9}), deliver)
    with pytest.raises(QueueFull):
        engine.submit(GenerationRequest("hello"), deliver)
    engine.run()
    counts = [event.counts for event in ended if hasattr(event, "counts")]
    snapshot = engine.snapshot()
    found = read(metrics_text(snapshot))
    assert found["requests_total", "answered"] == 3
    assert found["requests_total", "queue_full"] == 1
    for name in ("prompt", "generated", "drafted", "accepted"):
        assert found[f"{name}_tokens_total", ""] == sum(getattr(one, name) for one in counts)
    assert found["generated_tokens_total", ""] == 27
    assert found["drafted_tokens_total", ""] > 0
    assert found["prompt_tokens_kept_total", ""] == 2 * (counts[0].prompt - 1)
    assert found["cache_rows_used", ""] == counts[0].prompt + 8
    assert found["cache_rows", ""] == 400
    decode_s = sum(one.decode_s for one in counts)
    assert found["decode_seconds_total", ""] == pytest.approx(decode_s)
    assert found["tokens_per_second", ""] == pytest.approx(24 / decode_s)
    assert found["seconds_per_token", "measured"] == pytest.approx(decode_s / 24)
    assert found["seconds_per_token", "predicted"] == pytest.approx(1 / 50)
    assert found["acceptance_rate", "measured"] == 1.0  # both models are the same
    assert found["acceptance_rate", "predicted"] == 0.8


def test_the_rounds_of_several_at_a_time() -> None:
    counts = BatchCounts(
        rounds=10, rows=60, computed_rows=80, read_tokens=64, riding_tokens=5, tokens=50, busy_s=4.0, calls_s=3.5,
        scheduling_s=0.1, predicted_s=5.0, bound_s=0.3, gaps=40, late_gaps=1, longest_gap_s=0.35, branching_s=0.2,
        branches=7, branches_won=2,
    )  # fmt: skip
    zero = Snapshot({}, TokenCounts(), 0.0, 0, 0, 4, 64, 0, None)
    found = read(metrics_text(replace(zero, batch=counts)))
    assert (found["batch_tokens_per_second", "measured"], found["batch_tokens_per_second", "predicted"]) == (12.5, 10.0)
    parts = [found["batch_seconds_total", part] for part in ("calls", "scheduling", "branching", "rest")]
    assert parts == pytest.approx([3.5, 0.1, 0.2, 0.2])
    assert (found["batch_branches_total", ""], found["batch_branches_won_total", ""]) == (7, 2)
    assert (found["batch_rows_total", ""], found["batch_row_places_total", ""]) == (60, 80)
    assert found["batch_prompt_tokens_total", "beside_texts"] == 5
    assert (found["batch_gaps_total", ""], found["batch_late_gaps_total", ""]) == (40, 1)
    nothing = read(metrics_text(replace(zero, batch=BatchCounts())))
    assert not [key for key in nothing if key[0] == "batch_tokens_per_second"]
    assert not [key for key in read(metrics_text(zero)) if key[0].startswith("batch")]
