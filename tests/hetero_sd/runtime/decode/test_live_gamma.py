"""The live policy on simulated pairs (benchmarks/simulated_pair.py): scripted times and acceptance, a clock of its own.

What is judged is the time without noise after the first 200 tokens, over that of the better of the target alone and the
best fixed length for the same text.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from costmodel.schema.prediction import LivePrediction
from hetero_sd.runtime.decode import live_times, step_times
from hetero_sd.runtime.decode.drafters import Offer
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.loss_bank import LOSS_SHARE
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Round, Trace

sys.path.append(str(Path(__file__).resolve().parents[4] / "benchmarks"))
import simulated_pair as sim

ALLOWED = 1.02
CASES = {case.name: case for case in sim.CASES}


@pytest.mark.parametrize("case", sim.CASES, ids=lambda case: case.name)
def test_never_more_than_two_percent_above_the_best_fixed_choice(case: sim.Case) -> None:
    """The text is compared in `judge`."""
    judged = sim.judge(case)
    assert judged.over_best <= ALLOWED, judged
    assert judged.live <= ALLOWED, judged


@pytest.mark.parametrize(
    ("name", "gamma"), [("alpha 0.1, draft 0.5, steep", 3), ("the drafter becomes useless", 3), ("much noise", 0)]
)
def test_a_policy_that_does_not_adapt_fails(name: str, gamma: int) -> None:
    judged = sim.judge(CASES[name], (0,), lambda case: FixedGamma(gamma))
    assert judged.over_best > ALLOWED


BUSY, IN_TURN = sim.BUSY_CASES[:2], sim.BUSY_CASES[2:]


@pytest.mark.parametrize("case", BUSY, ids=lambda case: case.name)
def test_other_work_on_the_machine_is_not_taken_for_slow_drafting(case: sim.Case) -> None:
    """Half of the steps take up to four times as long; the time that is judged is that without."""
    assert sim.judge(case).over_best <= 1.05


@pytest.mark.parametrize("case", IN_TURN, ids=lambda case: case.name)
def test_a_core_that_other_work_has_in_turn_makes_drafts_longer_more_rarely_than_steps(
    case: sim.Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least of a few drafts has no wait in it, each step has one: drafting seems to pay where it does not."""
    assert sim.judge(case, range(2)).live <= ALLOWED
    for module in (live_times, step_times):  # the negative control
        monkeypatch.setattr(module, "stretched", lambda seen, plain: 1.0)
    if case is IN_TURN[1]:
        assert sim.judge(case, range(2)).live > ALLOWED + 0.02


@pytest.mark.parametrize("planned_tokens", [4.0, 32.0])
def test_from_the_first_token_on_a_plan_that_is_right_is_believed_and_a_wrong_one_costs_little(
    planned_tokens: float,
) -> None:
    """Three answers of 128 tokens, nothing left out; the plan's times are off by 1.2 this way and that."""
    more = {"answers": (128,) * 3, "warm": 0, "plan_off": 1.2, "planned_tokens": planned_tokens}
    right = sim.Case("right", 0.2, sim.FLAT, sim.always(0.8), planned_alpha=0.8, **more)
    assert sim.judge(right).over_best <= 1.035
    wrong = sim.Case("wrong", 0.3, sim.STAIRS, sim.always(0.1), planned_alpha=0.8, **more)
    assert sim.judge(wrong).live <= 1.02


def test_other_speeds_than_the_best_fixed_one_are_reached_where_the_text_changes() -> None:
    for name in ("acceptance falls midway", "the drafter becomes useless"):
        assert sim.judge(CASES[name], (0,)).over_best < 0.95


def test_a_long_prompt_is_read_in_pieces() -> None:
    """Where the time to the first token is no place for it: no wait is more than twice the median."""
    case = sim.Case("in pieces", 0.1, sim.FLAT, sim.always(0.9), chunk=0.9, prompt=600, answers=(400, 400), noise=0.0)
    policy = sim.live_policy(case)
    policy.read_first = lambda offers, prefill_s: 0  # type: ignore[method-assign]
    run = sim.Run(case, 0).play(policy)
    assert sum(r.read for r in run.traces[1].rounds) > 500
    assert sum(r.drafted for r in run.traces[1].rounds) > 100
    assert sim.longest_wait(run) <= 2.0
    at_once = sim.Run(case, 0)
    fixed = FixedGamma(3)
    fixed.read_first = lambda offers, prefill_s: 0  # type: ignore[method-assign]
    assert sim.longest_wait(at_once.play(fixed)) > 5.0  # the negative control


def test_with_a_given_length_the_prompt_is_read_before_the_first_token() -> None:
    case = sim.Case("at once", 0.1, sim.FLAT, sim.always(0.9), chunk=0.9, prompt=600, answers=(200,), noise=0.0)
    run = sim.Run(case, 0).play(FixedGamma(3))
    assert sim.longest_wait(run) <= 2.0
    assert run.traces[0].prefill_s > 19 * 0.9 * case.step_s


def test_long_prompts_of_short_answers_are_not_read_whole() -> None:
    case = CASES["long prompts, short answers"]
    run = sim.Run(case, 0).play(sim.live_policy(case))
    for trace in run.traces:
        assert sum(r.read for r in trace.rounds) < case.prompt / 4
    longer = sim.Run(CASES["long prompts, long answers"], 0).play(sim.live_policy(case))
    assert sum(r.drafted for trace in longer.traces for r in trace.rounds) > 500


def test_tries_cost_no_more_than_their_share() -> None:
    """Nothing pays: what is lost is 1.5 % of the time."""
    case = sim.Case("nothing pays", 0.3, sim.STEEP, sim.always(0.3), chunk=0.1, answers=(3000,))
    live = sim.Run(case, 0).play(sim.live_policy(case))
    alone = sim.Run(case, 0).play(None)
    drafting = [r for r in live.traces[0].rounds if r.drafted]
    assert len(drafting) > 8  # it is tried again
    assert (live.seconds - alone.seconds) / alone.seconds <= LOSS_SHARE + 0.002


def test_switches_are_recorded_with_their_numbers() -> None:
    case = CASES["the drafter becomes useless"]
    trace = sim.Run(case, 0).play(sim.live_policy(case)).traces[0]
    lengths = [0, *(s.after for s in trace.switches)]
    assert [s.before for s in trace.switches] == lengths[:-1]
    off = next(s for s in trace.switches if s.after == 0)
    assert 700 < off.tokens < 760  # the acceptance falls at 700 tokens, 40 of them of the prompt
    assert off.why in ("drafting loses", "drafting lost what may be lost")
    assert off.speedup < 1.02
    assert off.acceptance < 0.6
    assert off.plain_s == pytest.approx(case.step_s, rel=0.1)


def test_it_starts_from_the_given_length_and_from_what_was_timed() -> None:
    predicted = LivePrediction(0.8, 0.001, {w: 0.01 * s for w, s in sim.FLAT.items()}, 1e-5, 0.005, 32)
    policy = LiveGamma(predicted, [0, 1, 3, 7], start=3)
    offer = [Offer("model", 9)]
    assert policy.likely_gamma() == 3
    assert policy.choose(offer).gamma == 0  # a plain step is timed first
    for width, seconds in ((1, 0.01), (4, 0.0106), (1, 0.01), (4, 0.0106)):
        policy.times.measured(width, seconds)
    policy.times.measured_draft(0.001)
    assert policy.choose(offer).gamma > 0
    slow = LiveGamma(predicted, [0, 1, 3, 7], start=3)
    for width in (1, 4, 8, 2):
        for _ in range(2):
            slow.times.measured(width, 0.01 * width)
    slow.times.measured_draft(0.01)
    assert slow.choose(offer).gamma == 0


@pytest.mark.parametrize("only_model", [True, False])
def test_where_nothing_pays_most_rounds_ask_for_no_drafts(only_model: bool) -> None:
    """Other sources may have drafts at any place in the text: then every round asks."""
    case = sim.Case("useless", 0.5, sim.STEEP, sim.always(0.0), answers=(300,), noise=0.0, pauses=0.0)
    policy = sim.live_policy(case)
    policy._only_model = only_model
    asked, choose = list[int](), policy.choose
    policy.choose = lambda offers: (asked.append(1), choose(offers))[1]  # type: ignore[method-assign]
    rounds = sim.Run(case, 0).play(policy).traces[0].rounds
    assert len(rounds) >= 295
    assert len(asked) < 40 if only_model else len(asked) == len(rounds)


def test_plain_steps_are_timed_anew_where_rounds_become_slower_and_paid_for_after_that() -> None:
    both = sim.from_token(300, 1.0, 3.0)
    case = sim.Case("both", 0.1, sim.FLAT, sim.always(1.0), both, both, answers=(600,), noise=0.0, pauses=0.0)
    policy = sim.live_policy(case)
    rounds = sim.Run(case, 0).play(policy).traces[0].rounds
    assert policy.times.plain_s() == pytest.approx(3 * case.step_s, rel=0.01)
    assert sum(r.drafted == 0 for r in rounds) < 16
    assert policy.may_lose_s() > 0


def test_the_same_observations_lead_to_the_same_lengths() -> None:
    case = sim.Case("short", 0.2, sim.STAIRS, sim.always(0.7), answers=(300,), warm=0)
    one, same, other = (
        [r.drafted for r in sim.Run(case, seed).play(sim.live_policy(case)).traces[0].rounds] for seed in (3, 3, 4)
    )
    assert one == same
    assert one != other


def test_a_pause_of_the_system_changes_nothing() -> None:
    case = sim.Case("paused", 0.2, sim.FLAT, sim.always(0.9), answers=(200,), warm=0)
    policy = sim.live_policy(case)
    sim.Run(case, 0).play(policy)
    before = policy.tokens_per_s("model", 3)
    policy.observe(Round(3, 3, 0.006, 500.0, 0.0, 1e-5, source="model"))
    assert policy.tokens_per_s("model", 3) == pytest.approx(before, rel=0.05)
    assert policy.choose([Offer("model", 9)]).gamma > 0


@pytest.mark.parametrize(("widths", "allowed"), [((1, 4, 7), {0, 3, 6}), ((1,), {0})])
def test_only_compiled_widths_are_chosen(widths: tuple[int, ...], allowed: set[int]) -> None:
    case = sim.Case("few", 0.01, {w: 1 + w / 100 for w in widths}, sim.always(0.99), answers=(300,), warm=0)
    rounds = sim.Run(case, 0).play(sim.live_policy(case)).traces[0].rounds
    assert {r.drafted for r in rounds[:-8]} <= allowed


@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_greedy_text_is_the_targets_own(pair: Any, noise: float) -> None:
    """Bit for bit, whatever is drafted; the negative control's target prefers the opposite."""
    for seed in range(6):
        target, draft = pair(seed, noise, context=256)
        prompt, request = [1, 2, 3], Request(200)
        wanted = list(generate(target, prompt, request, Trace()))
        predicted = LivePrediction(0.8, 1e-7, {w: 1e-6 * s for w, s in sim.FLAT.items()}, 1e-7, 1e-7, 32)
        trace, policy = Trace(), LiveGamma(predicted, [w - 1 for w in sim.FLAT])
        drafter = ModelDrafter(draft, target.vocab, request.sampling)
        assert list(speculate(target, drafter, prompt, request, policy, trace)) == wanted
        target.table[:] = -target.table
        assert list(generate(target, prompt, request, Trace())) != wanted
