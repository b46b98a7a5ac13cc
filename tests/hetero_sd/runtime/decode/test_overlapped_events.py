"""The event simulation of overlapped rounds beside both threads' own code, which runs here on scripted clocks.

What the trace of such a run measured is what `benchmarks/speculation.py` gives to the simulation of a real one.
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from costmodel.overlapped_events import Durations, SimulatedText, simulate_text
from hetero_sd.runtime.decode.drafters import Drafter
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request
from hetero_sd.runtime.decode.overlapped.draft_side import DraftSide
from hetero_sd.runtime.decode.overlapped.draft_thread import DraftThread
from hetero_sd.runtime.decode.overlapped.messages import Begin, Ended, ToTarget, Verdict
from hetero_sd.runtime.decode.overlapped.target_side import Overlap, speculate_overlapped
from hetero_sd.runtime.decode.sampling import Rng, Sampling
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.model.protocol import CHOICE, Model

sys.path.append(str(Path(__file__).resolve().parents[4] / "benchmarks"))
import speculation_worker

PROMPT, NEW, HAND_OVER_S = [1, 2, 3, 4], 200, 0.002
VERIFY_S, EACH_S, READ_S, FIRST_S = 0.4, 0.01, 0.2, 1.0


class Clock:
    """Seconds of one processor."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(Model):
    """Steps that take their time on the clock of their processor."""

    def __init__(self, model: Any, clock: Clock, seconds: Callable[[int, int], float]) -> None:
        self._model, self._clock, self._seconds = model, clock, seconds
        self.vocab, self.context, self.name = model.vocab, model.context, model.name

    def submit(self, ids: Sequence[int], pos: int, outputs: Sequence[str] = (CHOICE,), last: bool = False) -> Any:
        self._clock.now += self._seconds(len(ids), pos)
        return self._model.submit(ids, pos, outputs or (CHOICE,), last)


class ScriptedThread(DraftThread):
    """The drafter's side, let run as far as its clock is behind the target's; a message takes its time on the way."""

    def __init__(self, ours: Clock, drafters: Clock) -> None:
        super().__init__(clock=ours)
        self._ours, self._drafters = ours, drafters
        self._verdicts = deque[Verdict]()
        self._messages = deque[tuple[float, ToTarget]]()
        self._side: DraftSide | None = None

    def begin(
        self, drafter: Drafter, tokens: Sequence[int], limit: int, lead: int, least: int, rng: Callable[[int], Rng]
    ) -> int:
        begin = Begin(1, drafter, list(tokens), limit, lead, least, rng)
        self._side = DraftSide(begin, lambda sent: self._messages.append((self._drafters.now, sent)), self._drafters)
        return 1

    def judge(self, text: int, length: int, token: int) -> None:
        self._verdicts.append(Verdict(text, length, token, self._ours.now))

    def end(self, text: int) -> None:
        self._messages.append((self._ours.now, Ended(text)))

    def receive(self, wait: bool) -> tuple[ToTarget | None, bool]:
        while self._drafters.now <= self._ours.now and self._go_on():
            pass
        if self._messages and self._messages[0][0] <= self._ours.now:
            return self._messages.popleft()[1], False
        if not wait:
            return None, False
        while not self._messages:
            assert self._go_on(), "both wait"
        sent_s, message = self._messages.popleft()
        self._ours.now = sent_s + HAND_OVER_S
        return message, True

    def _go_on(self) -> bool:
        assert self._side is not None
        if self._verdicts and self._verdicts[0].sent_s <= self._drafters.now:
            self._side.judge(self._verdicts.popleft(), None)
        elif not self._side.work():
            if not self._verdicts:
                return False
            verdict = self._verdicts.popleft()
            self._drafters.now = max(self._drafters.now, verdict.sent_s + HAND_OVER_S)
            self._side.judge(verdict, HAND_OVER_S)
        return True


def record(
    pair: Any, seed: int, gamma: int, least: int, draft_s: float, noise: float = 0.0
) -> tuple[Trace, list[bool]]:
    """The trace of a text on scripted clocks, and which of its tokens the drafter guesses."""
    rng = random.Random(seed)
    ours, drafters = Clock(), Clock()

    def about(seconds: float) -> float:
        return seconds * rng.uniform(1 - noise, 1 + noise)

    target, draft = pair(seed, 0.7, context=len(PROMPT) + NEW)
    timed = Timed(target, ours, lambda n, pos: about(VERIFY_S + EACH_S * (n - 1)) if pos else FIRST_S)
    drafter = Timed(draft, drafters, lambda n, pos: about(draft_s) if pos else READ_S)
    trace = Trace(clock=ours, spans=[])
    overlap = Overlap(ScriptedThread(ours, drafters), gamma, least)
    list(
        speculate_overlapped(
            timed, ModelDrafter(drafter, target.vocab, Sampling()), PROMPT, Request(NEW), overlap, trace
        )
    )
    text = [*PROMPT, *trace.token_ids]
    guesses = draft.argmax(text[:-1], 0)[len(PROMPT) - 1 :]
    return trace, [int(guess) == token for guess, token in zip(guesses, trace.token_ids, strict=True)]


def simulated(right: list[bool], gamma: int, least: int, draft_s: float) -> SimulatedText:
    durations = Durations(draft_s, lambda n: VERIFY_S + EACH_S * n, 0.0, HAND_OVER_S, FIRST_S, READ_S)
    return simulate_text(right, gamma, least, durations)


CASES = [(4, 0, 0.07), (4, 4, 0.07), (2, 0, 0.11), (3, 1, 0.05), (1, 0, 0.25), (1, 1, 0.5), (6, 6, 0.03), (5, 2, 0.7)]


@pytest.mark.parametrize(("gamma", "least", "draft_s"), CASES)
def test_it_reproduces_every_round_of_a_recorded_run(pair: Any, gamma: int, least: int, draft_s: float) -> None:
    for seed in (4, 6):
        trace, right = record(pair, seed, gamma, least, draft_s)
        found = simulated(right, gamma, least, draft_s)
        assert found.rounds == [(r.drafted, r.accepted) for r in trace.rounds]
        assert found.seconds == pytest.approx(trace.decode_s, rel=1e-9)
        assert found.wait_s == pytest.approx(sum(r.wait_s for r in trace.rounds), abs=1e-9)
        assert 0.5 * NEW < sum(right) < 0.98 * NEW


@pytest.mark.parametrize(("gamma", "least", "draft_s"), CASES)
def test_with_steps_of_uneven_length_it_is_within_five_percent(
    pair: Any, gamma: int, least: int, draft_s: float
) -> None:
    """Steps are up to a fifth longer or shorter; the negative controls are other steps and another protocol."""
    trace, right = record(pair, 4, gamma, least, draft_s, noise=0.2)
    found = simulated(right, gamma, least, draft_s)
    assert found.seconds == pytest.approx(trace.decode_s, rel=0.05)
    measured = speculation_worker.simulated([trace], [right], gamma, least, NEW)
    assert measured == pytest.approx((NEW - 1) / trace.decode_s, rel=0.05)
    slow = Durations(1.2 * draft_s, lambda n: 1.2 * (VERIFY_S + EACH_S * n), 0.0, HAND_OVER_S, FIRST_S, READ_S)
    assert simulate_text(right, gamma, least, slow).seconds != pytest.approx(trace.decode_s, rel=0.05)
    if least == gamma > 1:
        assert simulated(right, gamma, 0, draft_s).rounds != found.rounds
