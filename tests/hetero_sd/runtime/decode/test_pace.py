"""How often is decided where deciding takes as long as a step: counted on simulated texts, without real time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from hetero_sd.runtime.decode import pace
from hetero_sd.runtime.decode.pace import Pace

sys.path.append(str(Path(__file__).resolve().parents[4] / "benchmarks"))
import simulated_pair as sim

TEXTS, TOKENS, WARM = 100, 20, 200


def play(case: sim.Case, decision_steps: float) -> tuple[sim.Run, int, int]:
    """The run, how often was decided and how many steps the drafter made; a decision takes so many plain steps."""
    run, policy, decided, drafted = sim.Run(case, 0), sim.live_policy(case), [0], [0]
    decide, submit = policy._decision, sim.SimulatedModel.submit

    def slow_decision(*given: Any) -> Any:
        decided[0] += 1
        run.clock.pass_time(decision_steps)
        return decide(*given)

    def counted(model: sim.SimulatedModel, *given: Any, **more: Any) -> Any:
        drafted[0] += model.name == "draft"
        return submit(model, *given, **more)

    policy._decision = slow_decision  # type: ignore[assignment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sim.SimulatedModel, "submit", counted)
        run.play(policy)
    return run, decided[0], drafted[0]


def never_pays(**more: Any) -> sim.Case:
    return sim.Case("never pays", 0.5, sim.STEEP, sim.always(0.3), answers=(TOKENS,) * TEXTS, warm=WARM, **more)


def test_short_answers_for_which_nothing_pays_are_hardly_longer_with_the_policy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A decision takes one and a half steps, as those of the example pair do; prompts are counted."""
    case = never_pays(noise=0.02, pauses=0.0)
    alone = sim.Run(case, 0).play(None)
    run, decided, drafted = play(case, 1.5)
    assert run.seconds <= 1.02 * alone.seconds
    assert decided <= TEXTS * TOKENS // 80
    assert drafted <= TEXTS
    monkeypatch.setattr(pace, "DECIDING_SHARE", 10.0)  # the negative control
    often, more, _ = play(case, 1.5)
    assert often.seconds > 1.04 * alone.seconds
    assert more > 3 * decided


def test_where_a_step_is_long_it_is_decided_as_often_as_ever() -> None:
    case = never_pays()
    _, free, _ = play(case, 0.0)
    _, cheap, _ = play(case, 1e-3)
    _, dear, _ = play(case, 1.5)
    assert cheap > 0.8 * free > 3 * dear


def test_short_answers_for_which_drafting_pays_are_as_fast_as_with_the_best_length() -> None:
    case = sim.Case("pays", 0.1, sim.FLAT, sim.always(0.8), answers=(TOKENS,) * TEXTS, warm=WARM, chunk=0.1)
    run, decided, _ = play(case, 1.5)
    best = min(sim.Run(case, 0).play(sim.FixedGamma(gamma)).seconds for gamma in (3, 4, 5))
    assert run.seconds <= 1.02 * best
    assert decided <= TEXTS


def test_the_rounds_between_decisions_follow_from_what_one_takes() -> None:
    found = Pace()
    assert found.due
    found.decided(plain_s=1e-3, in_round=False)
    found.passed(1, 0.5, drafted=False)  # its loop decided nothing
    assert (found.least, found.due) == (0, True)
    found.decided(plain_s=1e-3, in_round=True)
    found.passed(1, 4e-4, drafted=False)
    assert found.least == 100
    for _ in range(98):
        found.passed(1, 0.0, drafted=False)
    assert not found.due
    found.passed(1, 0.0, drafted=False)
    assert found.due
    assert [found.rounds(4, 32, period, drafts=True) for period in (None, 6, 48, 96)] == [6, 12, 96, 100]
    assert found.rounds(8, 32, None, drafts=False) == 50
    assert [Pace().rounds(8, 32, period, drafts=True) for period in (None, 8, 16, 32)] == [8, 16, 32, 32]


def test_a_plain_step_is_timed_again_after_a_few_tokens_and_later_after_many() -> None:
    found = Pace()
    found.passed(16, 0.0, drafted=True)
    assert found.needs_plain(seen=1)
    assert not found.needs_plain(seen=2)
    found.passed(1, 0.0, drafted=False)
    assert not found.needs_plain(seen=1)
    found.retime = 2
    assert found.needs_plain(seen=63)
    for _ in range(2):
        found.passed(1, 0.0, drafted=False)
    assert not found.needs_plain(seen=63)
