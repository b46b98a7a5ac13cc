"""The drafter's side of one text: its copy, which runs ahead, and what it sends of it."""

from __future__ import annotations

from collections.abc import Callable

from hetero_sd.runtime.decode.overlapped.messages import TRANSFER, Begin, Drafts, Lost, Silent, ToTarget, Verdict
from hetero_sd.runtime.decode.sampling import Distribution
from hetero_sd.runtime.decode.trace import Span, Stopwatch

_PIECE = 256  # tokens of the text that are read before the next look at the messages


class DraftSide:
    """Drafts while it may, and judges what it drafted by the target's verdicts."""

    def __init__(self, begin: Begin, send: Callable[[ToTarget], None], clock: Callable[[], float]) -> None:
        """Begin a text; messages go to ``send``."""
        self._begin, self._send, self._clock = begin, send, clock
        self._tokens, self._certain, self._epoch = list(begin.tokens), len(begin.tokens), 0
        self._held: list[int] = []  # the last tokens of the copy, which the target has not got yet
        self._q: list[Distribution] = []
        self._step_s: list[float] = []
        self._hand_over_s: list[float] = []
        self._spans: list[Span] = []
        self._enough = begin.least  # held drafts that are sent together
        self._silent, self._lost = False, False

    def judge(self, verdict: Verdict, hand_over_s: float | None) -> None:
        """Compare the copy with the target's own token; ``hand_over_s`` where the thread had waited for it."""
        if self._held:  # the target must see what this verdict may contradict
            self._flush()
        if hand_over_s is not None:
            self._hand_over_s.append(hand_over_s)
            now = self._clock()
            self._spans.append(Span("draft", TRANSFER, now - hand_over_s, now))
        at, self._certain = verdict.length - 1, verdict.length
        if len(self._tokens) > at and self._tokens[at] == verdict.token:
            return
        if len(self._tokens) > at:
            self._epoch += 1
            self._silent, self._enough = False, self._begin.least
            del self._tokens[at:]
            self._begin.drafter.keep(at)
        self._tokens.append(verdict.token)

    def work(self) -> bool:
        """Read a piece of the text or draft a token; False where there is nothing to do until the next verdict."""
        if self._silent or self._lost or not self._may_draft():
            return False
        drafter, watch = self._begin.drafter, Stopwatch(self._clock, self._spans)
        offers = drafter.offers(self._tokens, watch)
        if offers and offers[0].unread:
            drafter.read(self._tokens, _PIECE, 0, watch)
            return True
        if offers:
            rng = self._begin.rng(len(self._tokens))
            draft = drafter.propose(self._tokens, offers[0].source, 1, watch, rng)
            if draft.tokens:
                self._hold(draft.tokens[0], draft.q, sum(watch.booked.values()))
                return True
        if self._held:
            self._flush()
        if drafter.lost is not None:
            self.lose(drafter.lost)
        else:
            self._silent = True
            self._send(Silent(self._begin.text, self._epoch))
        return False

    def lose(self, why: str) -> None:
        """Draft no more."""
        self._lost = True
        self._send(Lost(self._begin.text, why))

    def _may_draft(self) -> bool:
        return len(self._tokens) < min(self._certain + self._begin.lead, self._begin.limit)

    def _hold(self, token: int, q: list[Distribution], seconds: float) -> None:
        self._tokens.append(token)
        self._held.append(token)
        self._q += q
        self._step_s.append(seconds)
        if len(self._held) >= self._enough or not self._may_draft():
            self._flush()

    def _flush(self) -> None:
        """Send all at once: every message wakes the target, and costs both threads a hand-over."""
        position = len(self._tokens) - len(self._held)
        parts = self._held, self._q, self._step_s, self._hand_over_s, self._spans
        self._send(Drafts(self._begin.text, self._epoch, position, *parts, self._clock()))
        self._held, self._q, self._step_s, self._hand_over_s, self._spans = [], [], [], [], []
        self._enough = 1
