"""What was asked and generated so far, counted while it happens."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hetero_sd.runtime.answer import Generation, run_stats
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.serve.batch_counts import BatchCounts

OUTCOMES = "answered", "cancelled", "refused", "failed", "queue_full"
ANSWERED, CANCELLED, NOT_ASKED_RIGHT, NOT_ANSWERED, QUEUE_FULL = OUTCOMES
_RECENT = 8  # answers that speeds and acceptance are taken from


@dataclass(frozen=True)
class TokenCounts:
    """Tokens and rounds of answers, and the seconds that they took.

    Attributes:
        prompt, kept: tokens of the prompts, and those of them that the cache held already.
        generated: tokens.
        drafted, accepted: tokens of the drafter.
        rounds: passes of the target after the first token.
        prefill_s: until the first token.
        decode_s: from the first token to the last.
    """

    prompt: int = 0
    kept: int = 0
    generated: int = 0
    drafted: int = 0
    accepted: int = 0
    rounds: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    def __add__(self, other: TokenCounts) -> TokenCounts:
        """The sum."""
        return TokenCounts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def counts_of(trace: Trace) -> TokenCounts:
    """What a generation did so far; it may be running in another thread."""
    rounds = list(trace.rounds)
    return TokenCounts(
        trace.prompt_tokens,
        trace.kept_tokens,
        len(trace.token_ids),
        sum(r.drafted for r in rounds),
        sum(r.accepted for r in rounds),
        len(rounds),
        trace.prefill_s,
        trace.draft_prefill_s + sum(r.total_s for r in rounds),
    )


@dataclass(frozen=True)
class Snapshot:
    """An engine at one moment.

    Attributes:
        outcomes: requests by how they ended, one of OUTCOMES.
        tokens: of all answers, the running ones among them.
        wait_s: that requests waited before they were begun, the sum.
        running, waiting, most_waiting: requests.
        cache_rows, cache_rows_used: of the target's KV cache.
        recent: what `run.py --stats` measures, of the latest answers; None before the first.
        batch: the rounds, where several are answered at a time.
    """

    outcomes: Mapping[str, int]
    tokens: TokenCounts
    wait_s: float
    running: int
    waiting: int
    most_waiting: int
    cache_rows: int
    cache_rows_used: int
    recent: Mapping[str, Any] | None
    batch: BatchCounts | None = None


@dataclass
class Tally:
    """The sums over all requests; one thread writes, others read."""

    outcomes: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(OUTCOMES, 0)))
    wait_s: float = 0.0
    _ended: TokenCounts = field(default_factory=TokenCounts)
    _running: list[Generation] = field(default_factory=list)
    _recent: deque[Generation] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _stats: dict[str, Any] | None = None
    _stats_are_old: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, answer: Generation) -> None:
        """Count an answer that is generated from here on."""
        with self._lock:
            self._running.append(answer)

    def end(self, answer: Generation) -> TokenCounts:
        """Count what it did, to whichever end it came."""
        counts = counts_of(answer.trace)
        with self._lock:
            self._running.remove(answer)
            self._ended = self._ended + counts
            if answer.stop_reason is not None:
                self._recent.append(answer)
                self._stats_are_old = True
        return counts

    def tokens(self) -> TokenCounts:
        """Of all answers, the running ones among them."""
        with self._lock:
            return sum((counts_of(answer.trace) for answer in self._running), self._ended)

    def recent(self) -> dict[str, Any] | None:
        """What `run.py --stats` measures, of the latest answers."""
        with self._lock:
            answers, old = list(self._recent), self._stats_are_old
            self._stats_are_old = False
        if old:
            self._stats = run_stats(answers)
        return self._stats
