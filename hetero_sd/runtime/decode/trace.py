"""What one generation did and where its time went: the raw record that stats.py summarises."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from hetero_sd.runtime.decode.logprobs import Logprobs, TokenLogprob


@dataclass(frozen=True)
class Round:
    """One pass of the target and the drafting before it; drafted 0 is a plain decoding step.

    ``accepted`` counts what verification accepted, also where an end-of-text id or a limit then cut the round short.
    ``deciding_s`` is what the policy took to decide how much is drafted, from what. ``dispatch_s`` is the rest of the
    round: the loop itself and the hand-over between the models. ``catch_up_s`` came before it: the drafter read
    ``read`` tokens of text that it had not seen; the trace counts it in ``draft_prefill_s``. ``source`` says what the
    drafts were made from (drafters/__init__.py), "" where there are none.
    ``wait_s`` is what the target waited for drafts that are made beside it; there ``draft_s`` is 0.
    ``confidences`` are those of the drafted tokens, where they were asked for, which took ``confidence_s``; ``stopped``
    says that they ended the draft. ``transfer_s`` is what moving values between processors took of the terms above:
    copies in the models' steps, and messages that the target waited for.
    """

    drafted: int
    accepted: int
    draft_s: float
    verify_s: float
    sampling_s: float
    dispatch_s: float
    catch_up_s: float = 0.0
    read: int = 0
    source: str = ""
    wait_s: float = 0.0
    confidence_s: float = 0.0
    confidences: tuple[float, ...] = ()
    stopped: bool = False
    transfer_s: float = 0.0
    deciding_s: float = 0.0

    @property
    def loop_s(self) -> float:
        """What is neither a step nor sampling."""
        return self.dispatch_s + self.deciding_s

    @property
    def total_s(self) -> float:
        """Wall time of the round in seconds."""
        return self.draft_s + self.confidence_s + self.wait_s + self.verify_s + self.sampling_s + self.loop_s


COLD_ROUNDS = 4  # at the start of a text, at most: a prompt went through the caches before them


def first_rounds_s(rounds: Sequence[Round]) -> float | None:
    """What the first rounds of a text took longer than as many later ones; None where few are alike."""
    alike = [r.total_s for r in rounds if r.drafted == rounds[0].drafted]
    if len(alike) < 2 * COLD_ROUNDS - 1:
        return None
    return sum(alike[:COLD_ROUNDS]) - COLD_ROUNDS * median(alike[COLD_ROUNDS:])


@dataclass(frozen=True)
class Switch:
    """A change of the draft length by the live policy, and the numbers that it was decided by.

    Attributes:
        source: what the drafts are made from.
        before, after: drafted tokens a round; 0 is off.
        why: one sentence.
        acceptance: of a drafted token, as believed.
        plain_s, round_s: a plain step, and a round with the longer of the two draft lengths.
        speedup: expected, of that length over plain steps.
        bank_s: time that may be lost; see live_gamma.py.
        tokens: generated before it; set by the loop.
    """

    source: str
    before: int
    after: int
    why: str
    acceptance: float
    plain_s: float
    round_s: float
    speedup: float
    bank_s: float
    tokens: int = 0


class Span(NamedTuple):
    """What one model's thread did from one moment to another; the term is a booking of :class:`Stopwatch`."""

    role: str
    term: str
    begin_s: float
    end_s: float


@dataclass
class Trace:
    """The record of one generation, filled in while it runs.

    ``kept_tokens`` of the ``prompt_tokens`` were in the target's cache already, and were not read again.
    ``read_first`` counts the tokens that the drafter read before the first token was shown, which is in ``prefill_s``.
    ``finish_reason`` is "eos", "length" (max_new_tokens), "context" (the KV cache is full), "stop" (a stop string;
    set by the reader of the stream), or None while it runs. ``lost_drafter`` says why the drafter was left out from
    some round on; None where it was not. ``switches`` are the changes of the draft length. Where the drafter goes on
    while the target verifies, ``draft_steps_s`` are its steps that made a draft, and ``hand_overs_s`` the times from
    sending a message until the other thread, which waited for it, had it. ``spans`` says when all that was; None where
    nobody asked; nor ``logprobs``, those of the tokens. ``clock`` gives seconds.
    """

    prompt_tokens: int = 0
    kept_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    prefill_s: float = 0.0
    draft_prefill_s: float = 0.0
    read_first: int = 0
    lost_drafter: str | None = None
    rounds: list[Round] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)
    draft_steps_s: list[float] = field(default_factory=list)
    hand_overs_s: list[float] = field(default_factory=list)
    spans: list[Span] | None = field(default=None, repr=False)
    logprobs: Logprobs | None = field(default=None, repr=False)
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)

    @property
    def known_logprobs(self) -> list[TokenLogprob]:
        """Those of `token_ids`; none where nobody asked for them."""
        return [] if self.logprobs is None else self.logprobs.of[: len(self.token_ids)]

    @property
    def cut(self) -> bool:
        """Whether a limit ended the text, which would have gone on."""
        return self.finish_reason in ("length", "context")

    @property
    def decode_s(self) -> float:
        """Seconds from the first generated token to the last."""
        return self.draft_prefill_s + sum(r.total_s for r in self.rounds)


class Stopwatch:
    """Books every interval under a name, so that the parts sum to the whole; ``transfer_s`` is counted beside them."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter, spans: list[Span] | None = None) -> None:
        """Start now, with nothing booked; ``clock`` gives seconds. Bookings are appended to ``spans``, too."""
        self.booked: dict[str, float] = {}
        self.transfer_s = 0.0
        self._spans = spans
        self._clock, self._last = clock, clock()

    def book(self, term: str) -> None:
        """Add the time since the last booking to ``term``."""
        now = self._clock()
        self.booked[term] = self.booked.get(term, 0.0) + now - self._last
        if self._spans is not None:
            role = "draft" if term in ("draft", "confidence", "catch_up") else "target"
            self._spans.append(Span(role, term, self._last, now))
        self._last = now

    def round(self, drafted: int, accepted: int, read: int = 0, source: str = "") -> Round:
        """Return the round these bookings describe; time after the last booking counts as dispatch."""
        self.book("dispatch")
        names = ("draft", "verify", "sampling", "dispatch", "catch_up", "wait", "confidence", "deciding")
        terms: dict[str, Any] = {f"{name}_s": self.booked.get(name, 0.0) for name in names}
        return Round(drafted, accepted, **terms, read=read, source=source, transfer_s=self.transfer_s)
