"""The page /metrics: an engine's snapshot as Prometheus reads it (text format 0.0.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hetero_sd.runtime.serve.batch_counts import BatchCounts
from hetero_sd.runtime.serve.counts import Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_Samples = Mapping[str, float | None]  # labels -> value; None is left out


def metrics_text(snapshot: Snapshot) -> str:
    """The text."""
    tokens, recent = snapshot.tokens, snapshot.recent
    requests = {f'outcome="{name}"': count for name, count in snapshot.outcomes.items()}
    speed, acceptance = _measured(recent, "speed"), _measured(recent, "acceptance rate")
    per_token = {'source="measured"': speed[0], 'source="predicted"': speed[1]}
    acceptances = {'source="measured"': acceptance[0], 'source="predicted"': acceptance[1]}
    first = _measured(recent, "time to first token")
    lines = [
        _counter("requests", "Requests by how they ended.", requests),
        _counter("prompt_tokens", "Tokens of prompts.", {"": tokens.prompt}),
        _counter("prompt_tokens_kept", "Those of them that the cache held already.", {"": tokens.kept}),
        _counter("generated_tokens", "Tokens generated.", {"": tokens.generated}),
        _counter("drafted_tokens", "Tokens drafted.", {"": tokens.drafted}),
        _counter("accepted_tokens", "Drafted tokens that the target accepted.", {"": tokens.accepted}),
        _counter("rounds", "Passes of the target after the first token.", {"": tokens.rounds}),
        _counter("prefill_seconds", "Time until the first tokens.", {"": tokens.prefill_s}),
        _counter("decode_seconds", "Time from first to last tokens.", {"": tokens.decode_s}),
        _counter("queue_wait_seconds", "Time that requests waited.", {"": snapshot.wait_s}),
        _gauge("requests_running", "Requests at work.", {"": snapshot.running}),
        _gauge("queue_length", "Requests that wait.", {"": snapshot.waiting}),
        _gauge("queue_limit", "Requests that may wait.", {"": snapshot.most_waiting}),
        _gauge("cache_rows_used", "Rows of the target's cache that hold a text.", {"": snapshot.cache_rows_used}),
        _gauge("cache_rows", "Rows of the target's cache.", {"": snapshot.cache_rows}),
        _gauge("tokens_per_second", "Speed after the first token, of the latest answers.", {"": speed[0]}),
        _gauge("acceptance_rate", "Of judged drafted tokens, in the latest answers.", acceptances),
        _gauge("seconds_per_token", "After the first token, of the latest answers.", _inverse(per_token)),
        _gauge(
            "first_token_seconds",
            "Time until the first token, of the latest answers.",
            {'source="measured"': _seconds(first[0]), 'source="predicted"': _seconds(first[1])},
        ),
    ]
    return "".join([*lines, *([] if snapshot.batch is None else _batch(snapshot.batch))])


def _batch(batch: BatchCounts) -> list[str]:
    """The rounds of an engine that answers several at a time."""
    host_s = batch.busy_s - batch.calls_s - batch.drafting_s - batch.branching_s - batch.scheduling_s
    seconds = {"calls": batch.calls_s, "drafting": batch.drafting_s, "branching": batch.branching_s}
    seconds |= {"scheduling": batch.scheduling_s, "rest": host_s}
    tokens_of_prompts = {'how="alone"': batch.read_tokens, 'how="beside_texts"': batch.riding_tokens}
    speeds = {'source="measured"': _over(batch.tokens, batch.busy_s), 'source="predicted"': None}
    if batch.predicted_s:
        speeds['source="predicted"'] = batch.tokens / batch.predicted_s
    return [
        _counter("batch_rounds", "Rounds that called the target.", {"": batch.rounds}),
        _counter("batch_rows", "Rows of several texts that were computed.", {"": batch.rows}),
        _counter("batch_row_places", "Rows that the calls for them had room for.", {"": batch.computed_rows}),
        _counter("batch_prompt_tokens", "Tokens of prompts, by how they were read.", tokens_of_prompts),
        _counter("batch_seconds", "Time of the rounds.", {f'part="{name}"': value for name, value in seconds.items()}),
        _counter("batch_branches", "Branches of drafts that were verified.", {"": batch.branches}),
        _counter("batch_branches_won", "Those that the text went on with.", {"": batch.branches_won}),
        _counter("batch_gaps", "Times between two tokens of a text.", {"": batch.gaps}),
        _counter("batch_late_gaps", "Those that were longer than the bound.", {"": batch.late_gaps}),
        _gauge("batch_bound_seconds", "That a text waits at most for its next token.", {"": batch.bound_s}),
        _gauge("batch_longest_gap_seconds", "The longest time between two tokens.", {"": batch.longest_gap_s}),
        _gauge("batch_tokens_per_second", "Tokens of all texts in the time of the rounds.", speeds),
    ]


def _over(count: int, seconds: float) -> float | None:
    return count / seconds if seconds else None


def _measured(recent: Mapping[str, Any] | None, term: str) -> tuple[float | None, float | None]:
    """A term of `run.py --stats`, measured and predicted."""
    rows = [] if recent is None else recent["predicted_vs_measured"]
    return next(((row["measured"], row["predicted"]) for row in rows if row["term"] == term), (None, None))


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3


def _inverse(samples: _Samples) -> _Samples:
    return {labels: 1 / value for labels, value in samples.items() if value}


def _counter(name: str, meaning: str, samples: _Samples) -> str:
    return _family(f"{name}_total", "counter", meaning, samples)


def _gauge(name: str, meaning: str, samples: _Samples) -> str:
    return _family(name, "gauge", meaning, samples)


def _family(name: str, kind: str, meaning: str, samples: _Samples) -> str:
    name = f"hetero_sd_{name}"
    lines = [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
    for labels, value in samples.items():
        if value is not None:
            lines.append(f"{name}{{{labels}}} {value!r}" if labels else f"{name} {value!r}")
    return "\n".join(lines) + "\n"
