"""When drafts are stopped, worked out by hand and on simulated pairs (benchmarks/simulated_pair.py)."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sd.runtime.decode.drafters import Offer
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.sampling import best_probability
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.stats import stats_json
from hetero_sd.runtime.decode.stats_text import stats_table
from hetero_sd.runtime.decode.stopping import BORDERS, Calibration, DraftLimit, Prices, Stopping, confidence_class
from hetero_sd.runtime.decode.trace import Round, Trace

sys.path.append(str(Path(__file__).resolve().parents[4] / "benchmarks"))
import simulated_pair as sim

CASES = {case.name: case for case in sim.CONFIDENT_CASES}
LINEAR = Prices(following=0.8, rounds_s=(1.0, 1.2, 1.4, 1.6, 1.8), confidence_s=0.0)


def limit(prices: Prices, token_s: float = 0.5) -> DraftLimit:
    return DraftLimit(lambda confidence: confidence, prices, token_s)


def test_a_draft_goes_on_while_the_next_token_is_worth_its_time() -> None:
    """P(all so far and the next) * time per token > what it takes: 0.9 * 0.8 * 0.5 > 0.2 > 0.9 * 0.5 * 0.8 * 0.5."""
    stopped = limit(LINEAR)
    assert [stopped(0.9), stopped(0.5)] == [True, False]
    assert stopped.confidences == [0.9, 0.5]
    assert [limit(LINEAR, 0.62)(0.41), limit(LINEAR, 0.62)(0.4)] == [True, False]  # 0.4 * 0.8 * 0.62 < 0.2
    assert not limit(replace(LINEAR, confidence_s=0.3))(0.9)  # telling confidences costs, too
    last = limit(LINEAR, 100.0)
    assert [last(1.0) for _ in range(4)] == [True, True, True, False]  # no longer round is known


def test_a_step_of_the_stairs_is_taken_for_the_tokens_beyond_it() -> None:
    """One more token costs 0.5 and gives 0.36; three more cost 0.6 and give 0.36 + 0.29 + 0.23."""
    stairs = Prices(following=0.8, rounds_s=(1.0, 1.1, 1.6, 1.65, 1.7), confidence_s=0.0)
    assert limit(stairs)(0.9)
    assert not limit(replace(stairs, rounds_s=stairs.rounds_s[:3]))(0.9)  # the negative control


def test_the_best_fixed_length_by_hand() -> None:
    times = [1.0, 1.2 / 1.8, 1.4 / 2.44, 1.6 / 2.952, 1.8 / 3.3616]
    assert LINEAR.best_fixed() == (4, pytest.approx(times[4]))
    assert replace(LINEAR, following=0.1).best_fixed() == (0, 1.0)


def test_the_table_learns_what_a_confidence_is_worth() -> None:
    table = Calibration()
    assert table.acceptance(0.8) == pytest.approx(0.8)
    assert table.acceptance(1.0) > table.acceptance(0.1)
    for i in range(200):
        table.observe([0.8, 0.95, 0.1], 1 if i % 4 else 0)  # of the first three in four, the second never
    assert table.acceptance(0.8) == pytest.approx(0.75, abs=0.03)
    assert table.acceptance(0.94) < 0.03
    assert table.acceptance(0.1) == pytest.approx(0.1)  # after the first miss nothing is judged
    for _ in range(2000):
        table.observe([0.8], 0)
    assert table.acceptance(0.8) < 0.01  # it forgets


def test_classes_cover_all_confidences() -> None:
    found = [confidence_class(c) for c in (0.0, 0.19, *BORDERS, 1.0)]
    assert found == [0, 0, *range(1, len(BORDERS) + 1), len(BORDERS)]


def test_the_probability_of_the_best() -> None:
    logits = np.log(np.array([0.1, 0.6, 0.3], np.float32)) + 7
    before = logits.copy()
    assert best_probability(logits, 1) == pytest.approx(0.6)
    assert (logits == before).all()  # the memory is the model's


def drafted(made: DraftLimit, confidence: float, most: int = 4) -> int:
    """Tokens of a draft that has one confidence."""
    return next((n for n in range(1, most + 1) if not made(confidence)), most)


def test_it_learns_and_rests_where_nothing_would_be_gained() -> None:
    """Confidences that never stop a draft only cost their time: none is limited, and each rest is twice as long."""
    stopping, prices, said = Stopping(), replace(LINEAR, confidence_s=0.005), ""
    for _ in range(600):
        made = stopping.limit(lambda: prices)
        said += "." if made is None else "l" if made.learns else "x"
        if made is not None:
            stopping.observe(made, drafted(made, 1.0))
    assert said.startswith("l" * 24 + "." * 63 + "l" * 24 + "." * 127 + "l" * 24 + "." * 255 + "l")


def test_it_learns_then_tries_where_something_would_be_gained_and_rests_where_it_is_not() -> None:
    """While it learns, misses are foreseen; then the same confidences are accepted as others are."""
    stopping, said = Stopping(), ""
    for i in range(300):
        made = stopping.limit(lambda: LINEAR)
        said += "." if made is None else "l" if made.learns else "x"
        if made is not None:
            low = bool(i % 2)
            length = drafted(made, 0.1 if low else 0.99)
            stopping.observe(made, 0 if low and i < 24 else length)
    assert said.startswith("l" * 24 + "x" * 32 + ".")


def test_what_a_limit_would_have_drafted_is_known_where_it_learns() -> None:
    made = DraftLimit(lambda confidence: confidence, LINEAR, 0.5, learns=True)
    assert [made(c) for c in (0.9, 0.5, 0.99, 0.99)] == [True] * 4
    assert made.length == 2
    goes_on = DraftLimit(lambda confidence: confidence, LINEAR, 0.5, learns=True)
    goes_on(0.9)
    assert goes_on.length == 2  # the next token is worth its time


def test_confidences_that_take_more_than_their_share_of_a_round_are_not_told() -> None:
    """4 of them take 0.08 of 1.8; the rounds before a median of them is known are the price."""
    stopping, prices, said = Stopping(), replace(LINEAR, confidence_s=0.02), ""
    for _ in range(80):
        made = stopping.limit(lambda: prices)
        said += "." if made is None else "x"
        if made is not None:
            stopping.observe(made, drafted(made, 1.0))
    assert said == "xxxx" + "." * 63 + "xxxx" + "." * 9


def test_it_goes_on_where_something_is_gained() -> None:
    """Half of the drafts miss, and it was foreseen: the fixed length would have drafted on."""
    stopping = Stopping()
    for i in range(600):
        made = stopping.limit(lambda: LINEAR)
        assert made is not None
        length = drafted(made, 0.99 if i % 2 else 0.1)
        stopping.observe(made, length if i % 2 else 0)
        assert made.learns or length == (4 if i % 2 else 1)


def over_not_stopping(case: sim.Case) -> tuple[float, list[Trace]]:
    """The time of the live policy over that of the same policy without limits, and the traces with them."""
    silent = replace(case, confidence=None)
    seeds = range(3)
    stopped = [sim.Run(case, seed).play(sim.live_policy(case)) for seed in seeds]
    free = [sim.Run(silent, seed).play(sim.live_policy(silent)) for seed in seeds]
    assert [run.tokens for run in stopped] == [run.tokens for run in free]
    traces = [trace for run in stopped for trace in run.traces]
    return sum(run.seconds for run in stopped) / sum(run.seconds for run in free), traces


@pytest.mark.parametrize("case", sim.CONFIDENT_CASES, ids=lambda case: case.name)
def test_beside_drafts_that_are_not_stopped(case: sim.Case) -> None:
    """Faster where confidences mean something; the negative control's say nothing, gain nothing and cost little."""
    ratio, traces = over_not_stopping(case)
    if "random" in case.name:
        assert 0.98 <= ratio <= 1.02
    else:
        assert ratio < 0.96
        assert any(r.stopped for trace in traces for r in trace.rounds)


def test_better_than_every_fixed_length() -> None:
    assert sim.judge(CASES["confident, draft 0.3, flat"], (0,)).over_best < 0.92


def test_confidences_that_cost_too_much_are_not_told() -> None:
    dear = replace(CASES["confident, draft 0.1, flat"], confidence_steps=0.2)
    ratio, traces = over_not_stopping(dear)
    assert ratio <= 1.03
    rounds = [r for trace in traces for r in trace.rounds if r.drafted]
    assert 0 < sum(bool(r.confidences) for r in rounds) < 0.1 * len(rounds)


def test_a_drafter_that_cannot_tell_drafts_the_fixed_length() -> None:
    case = CASES["confident, draft 0.1, flat"]
    policy = sim.live_policy(case)
    sim.Run(replace(case, answers=(300,)), 0).play(policy)
    assert policy.choose([Offer("model", 9, confident=True)]).limit is not None
    assert policy.choose([Offer("model", 9)]).limit is None


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.0, 0.5, 3.0]),
    least=st.floats(0, 1),
    vocab=st.sampled_from([4, 6, 9]),  # the drafter's; the target has 6
)
def test_the_text_is_the_targets_own_wherever_drafts_stop(pair, by_confidence, seed, noise, least, vocab) -> None:
    """Bit for bit, also where the vocabularies differ; the negative control's target prefers the opposite."""
    target, draft = pair(seed, noise, draft_vocab=vocab)
    prompt, request, trace = [1, 2, 3], Request(40), Trace()
    wanted = list(generate(target, prompt, request, Trace()))
    drafter = ModelDrafter(draft, target.vocab, request.sampling)
    assert list(speculate(target, drafter, prompt, request, by_confidence(5, least), trace)) == wanted
    for r in trace.rounds:
        assert len(r.confidences) == r.drafted
        assert not r.stopped or r.confidences[-1] < least
        assert all(c >= least for c in r.confidences[:-1])
    target.table[:] = -target.table
    assert list(generate(target, prompt, request, Trace())) != wanted


def test_what_the_statistics_say() -> None:
    rounds = [
        Round(3, 3, 0.3, 0.1, 0.0, 0.0, source="model", confidence_s=3e-5, confidences=(0.9, 0.995, 0.95)),
        Round(1, 0, 0.1, 0.1, 0.0, 0.0, source="model", confidence_s=2e-5, confidences=(0.3,), stopped=True),
        Round(2, 0, 0.2, 0.1, 0.0, 0.0, source="model", confidence_s=4e-5, confidences=(0.91, 0.1), stopped=True),
        Round(4, 2, 0.4, 0.1, 0.0, 0.0, source="model"),
    ]
    got = stats_json([Trace(token_ids=list(range(9)), rounds=rounds)], None)
    assert got["decode_s"] == pytest.approx(1.4 + 9e-5)
    stopping = got["stopping"]
    assert (stopping["rounds"], stopping["drafted"], stopping["stopped"]) == (3, 6, 2)
    assert [(e["confidence"], e["accepted"], e["judged"]) for e in stopping["calibration"]] == [
        ([0.2, 0.4], 0, 1),
        ([0.85, 0.92], 1, 2),
        ([0.92, 0.97], 1, 1),
        ([0.99, 1.0], 1, 1),
    ]
    text = stats_table(got)
    assert "stopped by confidence: 2 of 3 drafts, 6 tokens in them; telling it took 20 us a token" in text
    assert "accepted by confidence: 0.2-0.4 0 of 1, 0.85-0.92 1 of 2, 0.92-0.97 1 of 1, 0.99-1 1 of 1" in text
    assert stats_json([Trace(token_ids=[1, 2], rounds=rounds[3:])], None)["stopping"] is None
