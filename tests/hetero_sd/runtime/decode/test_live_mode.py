"""Overlapped or taking turns, on scripted times: a text is rounds whose time and acceptance are given, without a clock.

What is judged is the time of many texts over that of the best fixed choice: the target alone, the best draft length
taking turns, or overlapped rounds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from costmodel.schema.plan import PlannedOverlap
from costmodel.schema.prediction import LivePrediction
from hetero_sd.runtime.decode import live_beside
from hetero_sd.runtime.decode.drafters import MODEL, Offer
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.live_mode import LiveMode
from hetero_sd.runtime.decode.overlapped.draft_thread import DraftThread
from hetero_sd.runtime.decode.overlapped.target_side import Overlap
from hetero_sd.runtime.decode.trace import Round, Switch, Trace
from hetero_sd.runtime.model.protocol import Models
from hetero_sd.runtime.session import Session

STEP_S, GAMMA, NEW = 0.1, 3, 200
BESIDE = ("waits for none", "waits for all")
OVERLAP = PlannedOverlap(GAMMA, 0, (0,), (1,), "cpu", 1.0, 1.0, 0.0, 4e-5, 2.5, 20.0)


@dataclass(frozen=True)
class Machine:
    """Seconds of a draft step and of an overlapped round, whatever it verifies; acceptance from some text on.

    Rounds that wait for all drafts take so much longer or less.
    """

    draft_s: float
    beside_s: float
    alpha: float = 0.8
    later_from: int = 1 << 30
    later_alpha: float = 0.0
    later_beside_s: float = 0.0
    waiting_s: float = 0.0

    def now(self, text: int) -> tuple[float, float]:
        later = text >= self.later_from
        return (self.later_alpha, self.later_beside_s or self.beside_s) if later else (self.alpha, self.beside_s)


def live_mode(machine: Machine) -> LiveMode:
    steps = {1: STEP_S, 2: 1.02 * STEP_S, 4: 1.05 * STEP_S}
    turns = LiveGamma(LivePrediction(machine.alpha, machine.draft_s, steps, 1e-4, 0.2, 32), [0, 1, 3], 0, 2)
    for width, seconds in steps.items():
        for _ in range(2):
            turns.times.measured(width, seconds)
    turns.times.measured_draft(machine.draft_s)
    return LiveMode(turns, OVERLAP)


def one_text(
    machine: Machine, text: int, mode: LiveMode | None, fixed: int | str, rng: random.Random
) -> tuple[float, list[Switch]]:
    """Seconds and switches of a text, live, with a fixed draft length, or in one of the ways `BESIDE`."""
    alpha, beside_s = machine.now(text)
    overlapped = mode.begin(8, NEW) if mode is not None else fixed in BESIDE
    if overlapped and (fixed == BESIDE[1] if mode is None else mode.least == GAMMA):
        beside_s += machine.waiting_s
    if mode is not None and not overlapped:
        mode.turns.begin(8, NEW)
    seconds, tokens, switches = 0.0, 0, list[Switch]()
    while tokens < NEW:
        gamma = GAMMA if overlapped else int(fixed) if mode is None else mode.turns.choose([Offer(MODEL, 99)]).gamma
        accepted = 0
        while accepted < gamma and rng.random() < alpha:
            accepted += 1
        verify_s = {0: STEP_S, 1: 1.02 * STEP_S, 3: 1.05 * STEP_S}[gamma]
        source = MODEL if gamma else ""
        made = Round(gamma, accepted, gamma * machine.draft_s, verify_s, 0.0, 1e-4, source=source)
        if overlapped:
            made = Round(gamma, accepted, 0.0, beside_s, 0.0, 0.0, source=MODEL, wait_s=1e-9)
        seconds, tokens = seconds + made.total_s, tokens + accepted + 1
        if mode is not None and not overlapped:
            mode.turns.observe(made)
        elif mode is not None and (switch := mode.observe(made)) is not None:
            switches.append(switch)
            overlapped = False
    return seconds, switches


def play(machine: Machine, mode: LiveMode | None, fixed: int | str = 0, texts: int = 60) -> tuple[float, list[Switch]]:
    """Seconds of all texts after the first two, which warm it up."""
    rng, whole, switches = random.Random(5), 0.0, list[Switch]()
    for text in range(texts):
        seconds, switched = one_text(machine, text, mode, fixed, rng)
        whole += seconds if text >= 2 else 0.0
        switches += switched
    return whole, switches


MACHINES = {
    "overlapping is best": Machine(0.04, 0.11),
    "overlapping is slower than it promises": Machine(0.04, 0.4),
    "taking turns is best": Machine(0.004, 0.25),
    "to wait for all is faster": Machine(0.02, 0.14, waiting_s=-0.03),
    "to wait for all is slower": Machine(0.02, 0.11, waiting_s=0.05),
    "to wait for all is hardly faster": Machine(0.02, 0.11, waiting_s=-0.003),
    "nothing pays": Machine(0.06, 0.2, alpha=0.1),
    "the other processor becomes busy": Machine(0.04, 0.11, later_from=20, later_alpha=0.8, later_beside_s=0.3),
    "the drafter becomes useless": Machine(0.04, 0.11, later_from=20, later_alpha=0.02, later_beside_s=0.13),
}


@pytest.mark.parametrize("name", MACHINES)
def test_never_more_than_two_percent_above_the_best_fixed_choice(name: str) -> None:
    machine = MACHINES[name]
    live, _ = play(machine, live_mode(machine))
    best = min(play(machine, None, fixed)[0] for fixed in (0, 1, 3, *BESIDE))
    assert live <= 1.02 * best


@pytest.mark.parametrize("name", ["overlapping is slower than it promises", "the other processor becomes busy"])
def test_a_policy_that_never_leaves_fails(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = MACHINES[name]
    best = min(play(machine, None, fixed)[0] for fixed in (0, 1, 3, *BESIDE))
    monkeypatch.setattr(LiveMode, "observe", lambda self, finished: None)
    assert play(machine, live_mode(machine))[0] > 1.02 * best


def test_it_leaves_with_its_numbers_and_comes_back_less_and_less_often() -> None:
    machine = MACHINES["overlapping is slower than it promises"]
    _, switches = play(machine, live_mode(machine))
    assert 3 <= len(switches) <= 7
    assert {(s.source, s.before, s.after) for s in switches} == {("overlapped", GAMMA, 0)}
    assert all(s.round_s == pytest.approx(0.4) and s.plain_s == pytest.approx(STEP_S, rel=0.01) for s in switches)
    assert play(MACHINES["overlapping is best"], live_mode(MACHINES["overlapping is best"]))[1] == []


def test_the_formula_is_reckoned_again_where_something_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each text: it takes as long as some steps of a small model. The negative control lets nothing be same."""
    machine, reckoned, formula = MACHINES["taking turns is best"], list[float](), live_beside.early_round

    def counted(*given):
        reckoned.append(given[0])
        return formula(*given)

    monkeypatch.setattr(live_beside, "early_round", counted)
    play(machine, live_mode(machine))
    few = len(reckoned)
    monkeypatch.setattr(live_beside, "_SAME", -1.0)
    play(machine, live_mode(machine))
    assert 1 <= few <= (len(reckoned) - few) / 10


def test_a_mode_that_never_waits_for_all_fails() -> None:
    machine = MACHINES["to wait for all is faster"]
    best = min(play(machine, None, fixed)[0] for fixed in (0, 1, 3, *BESIDE))
    mode = live_mode(machine)
    mode._ways = mode._ways[:1]
    assert play(machine, mode)[0] > 1.1 * best


def test_samples_wait_for_all() -> None:
    mode = live_mode(MACHINES["overlapping is best"])
    assert mode.begin(8, NEW, waits_for_all=True)
    assert mode.least == GAMMA
    assert mode.begin(8, NEW)
    assert mode.least == 0


@pytest.mark.parametrize("leaves_after", [1, 2, 7])
def test_a_text_that_leaves_goes_on_with_the_targets_own_tokens(pair, leaves_after: int) -> None:
    target, draft = pair(7, 1.0, context=200)
    alone = list(generate(target, [1, 2, 3], Request(80), Trace()))
    mode, seen = live_mode(Machine(0.04, 0.1)), list[Round]()

    def observe(finished: Round) -> Switch | None:
        seen.append(finished)
        return Switch("overlapped", 3, 0, "", 0.5, 0.1, 0.1, 1.0, 0.0) if len(seen) == leaves_after else None

    mode.observe = observe  # type: ignore[method-assign]
    with DraftThread() as thread:
        overlap = Overlap(thread, 3, 1, mode)
        session = Session(Models(target, draft), None, Request(80), policy=mode.turns, overlap=overlap)
        answer = session.answer([1, 2, 3])
        answer.read()
    assert answer.token_ids == alone
    assert (session.way.mode, len(seen), len(answer.trace.switches) >= 1) == ("live", leaves_after, True)
    assert len(answer.trace.rounds) > leaves_after
