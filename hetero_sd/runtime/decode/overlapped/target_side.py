"""The target's side: it owns the text, verifies the drafts that have arrived, and tells the drafter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from hetero_sd.runtime.decode.drafters import MODEL, Draft, Drafter
from hetero_sd.runtime.decode.generate import Request, first_token, record_token
from hetero_sd.runtime.decode.live_mode import LiveMode
from hetero_sd.runtime.decode.overlapped.draft_thread import DraftThread
from hetero_sd.runtime.decode.overlapped.messages import TRANSFER, Drafts, Ended, Failed, Lost, Silent, ToTarget
from hetero_sd.runtime.decode.sampling import Distribution, Rng
from hetero_sd.runtime.decode.speculate import take_turns, verify
from hetero_sd.runtime.decode.trace import Span, Stopwatch, Trace
from hetero_sd.runtime.model.protocol import Model
from hetero_sd.runtime.model.side_by_side import Sides


@dataclass(frozen=True)
class Overlap:
    """How a session drafts while the target verifies.

    Attributes:
        thread: the drafter's, running.
        gamma: drafts that are verified at a time, at most; at least 1.
        least: drafts that the target waits for; sampling waits for all.
        live: decides that and whether a text begins so, and ends it where taking turns is faster; None: all begin so.
        sides: where the models compute, which change with the mode.
    """

    thread: DraftThread
    gamma: int
    least: int = 0
    live: LiveMode | None = None
    sides: Sides = field(default_factory=Sides)


def speculate_overlapped(
    target: Model,
    drafter: Drafter,
    prompt: Sequence[int],
    request: Request,
    overlap: Overlap,
    trace: Trace,
    rng: Rng | None = None,
) -> Iterator[int]:
    """Yield the ids that follow ``prompt`` and record the run in ``trace``; see :func:`generate.generate`.

    Greedy output is the target's own, sampled output has its law. The drafter reads the prompt while the target does.
    """
    sampling, thread, gamma = request.sampling, overlap.thread, overlap.gamma
    rng = rng or Rng(sampling.seed)
    planned = overlap.least if overlap.live is None else overlap.live.least
    least = planned if sampling.greedy else gamma
    tokens, end = list(prompt), min(len(prompt) + request.max_new_tokens, target.context + 1)
    text = thread.begin(
        drafter,
        tokens,
        limit=end - 1,  # the target adds a token of its own
        lead=2 * gamma + 1,
        least=least,
        rng=lambda position: rng if sampling.greedy else Rng((sampling.seed, position)),
    )
    arrived = _Arrived(text, trace)
    left = False
    try:
        new_tokens = [first_token(target, prompt, sampling, trace, rng)]
        while not left:
            thread.judge(text, len(tokens) + len(new_tokens), new_tokens[-1])
            for token in new_tokens:
                record_token(token, request, target.context, trace)
                tokens.append(token)
                yield token
                if trace.finish_reason:
                    return

            watch = Stopwatch(trace.clock, trace.spans)
            most = min(gamma, end - 1 - len(tokens))
            watch.transfer_s += _receive(thread, arrived, tokens, min(least, most), trace)
            watch.book("wait")
            draft = Draft(arrived.tokens[:most], arrived.q[:most])
            drafted = draft.tokens
            accepted, extra = verify(target, tokens, draft, sampling, watch, rng, trace.logprobs)
            arrived.judge(accepted, extra)
            new_tokens = [*drafted[:accepted], extra]
            trace.rounds.append(watch.round(len(drafted), accepted, source=MODEL if drafted else ""))
            if overlap.live is not None and (switch := overlap.live.observe(trace.rounds[-1])) is not None:
                trace.switches.append(replace(switch, tokens=len(trace.token_ids)))
                left = True
    finally:  # also on Ctrl-C, and where nobody wants more of the text
        thread.end(text)
        while not arrived.ended:  # within a step of the drafter
            message, _ = thread.receive(wait=True)
            if message is not None:
                arrived.take(message, tokens)
    if left and overlap.live is not None:
        drafter.keep(len(tokens))  # the drafter had judged all of it, and went on
        overlap.sides.together()
        turns = overlap.live.turns
        yield from take_turns(target, drafter, tokens, new_tokens, request, turns, trace, rng)


def _receive(thread: DraftThread, arrived: _Arrived, tokens: Sequence[int], least: int, trace: Trace) -> float:
    """Take all messages there are, and wait until there are ``least`` drafts or no more will come.

    Returns:
        seconds that messages which were waited for were on their way.

    Raises:
        BaseException: what the drafter's thread ended the text with.
    """
    transfer_s = 0.0
    while True:
        message, waited = thread.receive(len(arrived.tokens) < least and not arrived.silent)
        if message is None:
            return transfer_s
        if waited and isinstance(message, Drafts):
            now = trace.clock()
            trace.hand_overs_s.append(now - message.sent_s)
            transfer_s += now - message.sent_s
            if trace.spans is not None:
                trace.spans.append(Span("target", TRANSFER, message.sent_s, now))
        arrived.take(message, tokens)
        if arrived.error is not None:
            raise arrived.error


class _Arrived:
    """Drafts that have arrived and follow the text."""

    def __init__(self, text: int, trace: Trace) -> None:
        self.tokens: list[int] = []
        self.q: list[Distribution] = []  # of each, when sampling
        self.silent, self.ended = False, False  # no more come in this epoch, or ever
        self.error: BaseException | None = None
        self._text, self._epoch, self._trace = text, 0, trace

    def take(self, message: ToTarget, text: Sequence[int]) -> None:
        """Take a message of the drafter's thread; one of an earlier text is dropped."""
        if message.text != self._text:
            return
        if isinstance(message, Drafts):
            self._trace.draft_steps_s += message.step_s
            self._trace.hand_overs_s += message.hand_over_s
            if self._trace.spans is not None:
                self._trace.spans += message.spans
            if message.epoch == self._epoch:
                self._compare(message, text)
        elif isinstance(message, Silent):
            self.silent = self.silent or message.epoch == self._epoch
        elif isinstance(message, Lost):
            self.silent, self._trace.lost_drafter = True, message.why
        elif isinstance(message, Failed):
            self.silent, self.error = True, message.error
        elif isinstance(message, Ended):
            self.ended = True

    def judge(self, accepted: int, own: int) -> None:
        """The target accepted so many of them, and chose its own token after those."""
        following, q = self.tokens[accepted:], self.q[accepted:]
        if following and following[0] != own:
            self._miss()
        else:
            self.tokens, self.q = following[1:], q[1:]

    def _compare(self, drafts: Drafts, text: Sequence[int]) -> None:
        """Add drafts; those of places that were decided meanwhile are compared with the text."""
        decided = max(0, len(text) - drafts.position)
        if drafts.tokens[:decided] != list(text[drafts.position : drafts.position + len(drafts.tokens)]):
            self._miss()
            return
        self.tokens += drafts.tokens[decided:]
        self.q += drafts.q[decided:]

    def _miss(self) -> None:
        self.tokens, self.q, self._epoch = [], [], self._epoch + 1
        self.silent = self._trace.lost_drafter is not None
