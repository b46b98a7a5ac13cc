"""What one generation did and where its time went: the raw record that stats.py summarises."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Round:
    """One pass of the target and the drafting before it; drafted 0 is a plain decoding step.

    ``accepted`` counts what verification accepted, also where an end-of-text id or a limit then cut the round short.
    ``dispatch_s`` is the rest of the round: the loop itself and the hand-over between the models. ``catch_up_s`` came
    before it: the drafter read text that it had not seen; the trace counts it in ``draft_prefill_s``.
    """

    drafted: int
    accepted: int
    draft_s: float
    verify_s: float
    sampling_s: float
    dispatch_s: float
    catch_up_s: float = 0.0

    @property
    def total_s(self) -> float:
        """Wall time of the round in seconds."""
        return self.draft_s + self.verify_s + self.sampling_s + self.dispatch_s


@dataclass
class Trace:
    """The record of one generation, filled in while it runs.

    ``finish_reason`` is "eos", "length" (max_new_tokens), "context" (the KV cache is full), "stop" (a stop string;
    set by the reader of the stream), or None while it runs. ``lost_drafter`` says why the drafter was left out from
    some round on; None where it was not.
    """

    prompt_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prefill_s: float = 0.0
    draft_prefill_s: float = 0.0
    lost_drafter: str | None = None
    rounds: list[Round] = field(default_factory=list)

    @property
    def decode_s(self) -> float:
        """Seconds from the first generated token to the last."""
        return self.draft_prefill_s + sum(r.total_s for r in self.rounds)


class Stopwatch:
    """Books every interval under a name, so that the parts sum to the whole."""

    def __init__(self) -> None:
        """Start now, with nothing booked."""
        self.booked: dict[str, float] = {}
        self._last = time.perf_counter()

    def book(self, term: str) -> None:
        """Add the time since the last booking to ``term``."""
        now = time.perf_counter()
        self.booked[term] = self.booked.get(term, 0.0) + now - self._last
        self._last = now

    def round(self, drafted: int, accepted: int, catch_up_s: float = 0.0) -> Round:
        """Return the round these bookings describe; time after the last booking counts as dispatch."""
        self.book("dispatch")
        terms = {f"{term}_s": self.booked.get(term, 0.0) for term in ("draft", "verify", "sampling", "dispatch")}
        return Round(drafted, accepted, **terms, catch_up_s=catch_up_s)
