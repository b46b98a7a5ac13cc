from __future__ import annotations

import random
from dataclasses import replace

import pytest
from bundles import LIVE, some_plan, some_prediction

from costmodel.schema.plan import PlannedOverlap
from costmodel.speculative import expected_tokens
from hetero_sd.runtime.decode.drafters import MODEL
from hetero_sd.runtime.decode.predicted_run import (
    BY_PLAN,
    BY_RUN,
    expected_rounds,
    predicted_first_token_s,
    predicted_loop_s,
    predicted_speed,
    predicted_time_shares,
    predicted_transfer_s,
)
from hetero_sd.runtime.decode.stats import stats_json
from hetero_sd.runtime.decode.stats_text import stats_table
from hetero_sd.runtime.decode.trace import Round, Trace

PREDICTION = some_prediction(
    acceptance_rate=0.8, tokens_per_s=99.0, draft_step_s=0.01, verify_step_s={1: 0.1, 4: 0.12}, dispatch_s=0.001,
    prompt_chunk_s=0.3, prompt_start_s=0.2, live=LIVE,
)  # fmt: skip
PLAN = some_plan(prediction=PREDICTION)


def text(tokens: int, **changes: int) -> Trace:
    return replace(Trace(prompt_tokens=20, token_ids=[1] * tokens, prefill_s=0.1), **changes)


def test_rounds_of_a_text_beside_a_simulation() -> None:
    rng, alpha, gamma, n, rounds = random.Random(1), 0.8, 3, 17, 0
    for _ in range(20_000):
        left = n
        while left > 0:
            accepted = next((k for k in range(gamma) if rng.random() >= alpha), gamma)
            left, rounds = left - accepted - 1, rounds + 1
    expected = expected_rounds(n, alpha, gamma)[n]
    assert expected == pytest.approx(rounds / 20_000, rel=0.01)
    assert expected > 1.04 * n / expected_tokens(alpha, gamma)  # the negative control: as in a long text
    assert expected_rounds(4000, alpha, gamma)[-1] == pytest.approx(4000 / expected_tokens(alpha, gamma), rel=1e-3)
    assert expected_rounds(5, 0.3, 0) == [0, 1, 2, 3, 4, 5]


def test_the_speed_is_of_what_was_run() -> None:
    assert predicted_speed(PLAN, [text(18)], 0) == pytest.approx(1 / 0.101)
    rounds = expected_rounds(17, 0.8, 3)[17]
    assert predicted_speed(PLAN, [text(18), text(18)], 3) == pytest.approx(17 / (rounds * 0.151))
    assert predicted_speed(PLAN, [text(18)], 2) is None  # three tokens are not priced
    assert predicted_speed(PLAN, [text(1)], 3) is None
    shown = {g: stats_json([text(18)], PLAN, g)["predicted_vs_measured"][1]["predicted"] for g in (0, 3, None)}
    assert shown[0] == pytest.approx(1 / 0.101)
    assert shown[3] == pytest.approx(17 / (rounds * 0.151))
    assert shown[None] == 99.0  # live draft lengths: the plan's


def test_a_text_begins_with_longer_rounds() -> None:
    cold = replace(PLAN, prediction=replace(PREDICTION, start_s=0.05, turn_start_s=0.2))
    rounds = expected_rounds(17, 0.8, 3)[17]
    assert predicted_speed(cold, [text(18), text(18)], 3) == pytest.approx(34 / (2 * rounds * 0.151 + 0.4))
    assert predicted_speed(cold, [text(18), text(1)], 0) == pytest.approx(17 / (17 * 0.101 + 0.05))  # one has none


def test_the_first_token_waits_for_what_the_drafter_reads() -> None:
    assert predicted_first_token_s(PLAN, text(3)) == pytest.approx(0.2)
    assert predicted_first_token_s(PLAN, text(3, read_first=20)) == pytest.approx(0.2 + LIVE.chunk_s)
    assert predicted_first_token_s(PLAN, text(3, read_first=33)) == pytest.approx(0.2 + 2 * LIVE.chunk_s)


def test_later_chunks_of_a_prompt_take_longer() -> None:
    """0.2 s at the start and 0.3 s after 32 tokens; a prompt of 68 tokens ends with a step of 4."""
    assert PREDICTION.first_token_s(68, 32) == pytest.approx(0.2 + 0.3 + 0.12)
    assert replace(PREDICTION, prompt_start_s=None).first_token_s(68, 32) == pytest.approx(0.3 + 0.3 + 0.12)


def drafted(count: int, wait_s: float = 0.0, read: int = 0, source: str = "model") -> Round:
    return Round(count, 0, 9.0, 9.0, 9.0, 9.0, read=read, source=source if count else "", wait_s=wait_s)


def test_shares_of_the_time_by_the_plans_steps() -> None:
    """Of the rounds that were run, whatever they took: three drafts, none, three of n-grams after reading 40 tokens."""
    own = replace(PLAN, prediction=replace(PREDICTION, turn_s=0.002))
    rounds = [drafted(3), drafted(0), drafted(3, read=40, source="ngram-2")]
    got = predicted_time_shares(own, [replace(text(5), rounds=rounds)])
    read = 2 * LIVE.chunk_s
    seconds = {"draft": 0.03, "verify": 0.34, "wait": 0.0, "sampling": 0.0, "confidence": 0.0, "dispatch": 0.007}
    seconds["read"] = read
    assert got == pytest.approx({term: spent / (0.377 + read) for term, spent in seconds.items()})
    assert predicted_time_shares(own, [replace(text(5), rounds=[drafted(2)])]) == {}  # three tokens are not priced
    assert predicted_time_shares(own, [text(5)]) == {}


def test_confidences_that_were_told_are_among_the_shares() -> None:
    """Two rounds of three drafts, one of which asked for confidences; the control is a plan without a price."""
    own = replace(PLAN, prediction=replace(PREDICTION, confidence_s=0.002))
    asked = replace(drafted(3), confidences=(0.9, 0.8, 0.7))
    got = predicted_time_shares(own, [replace(text(5), rounds=[drafted(3), asked])])
    assert got["confidence"] == pytest.approx(0.006 / (2 * (0.03 + 0.12 + 0.001) + 0.006))
    assert predicted_time_shares(PLAN, [replace(text(5), rounds=[asked])])["confidence"] == 0.0


def test_beside_the_target_the_drafter_takes_no_time() -> None:
    overlap = PlannedOverlap(3, 3, (0,), (1,), "cpu", 1.0, 1.0, 0.05, 4e-5, 2.5, 9.0)
    own = replace(PLAN, overlap=overlap)
    got = predicted_time_shares(own, [replace(text(5), rounds=[drafted(3, wait_s=0.1)])])
    seconds = {"draft": 0.0, "verify": 0.12, "wait": 0.05, "sampling": 0.0, "confidence": 0.0, "dispatch": 0.001}
    seconds["read"] = 0.0
    assert got == pytest.approx({term: spent / 0.171 for term, spent in seconds.items()})
    assert predicted_transfer_s(own, overlapped=True) == pytest.approx((1 - 0.8**3) * 4e-5)
    assert predicted_transfer_s(own, overlapped=False) == 0.0
    assert predicted_transfer_s(PLAN, overlapped=True) == 0.0


def test_the_loop_is_predicted_by_what_knows_it() -> None:
    """A plan calibrated without a drafter knows the loop of the target alone, not that of rounds that draft."""
    alone = [Round(0, 0, 0.0, 0.1, 0.0, 2e-6)] * 20
    drafting = [Round(2, 1, 0.02, 0.12, 0.0, s, source=MODEL) for s in (*[1e-4] * 8, *[5e-4] * 12)]
    ngram = [replace(r, source="ngram-3") for r in drafting]
    turns = replace(PLAN, prediction=replace(PLAN.prediction, dispatch_s=1e-6, turn_s=3e-6))
    without = replace(PLAN, prediction=replace(PLAN.prediction, dispatch_s=1e-6, turn_s=2e-10))
    for plan, rounds, expected in (
        (turns, alone, (1e-6, BY_PLAN)),
        (without, alone, (1e-6, BY_PLAN)),
        (turns, drafting, (4e-6, BY_PLAN)),
        (turns, ngram, (1e-4, BY_RUN)),
        (without, drafting, (1e-4, BY_RUN)),
        (without, drafting[:15], (None, BY_RUN)),
    ):
        assert predicted_loop_s(plan, [Trace(rounds=list(rounds))]) == expected
    table = stats_table(stats_json([Trace(prompt_tokens=1, token_ids=[1] * 40, rounds=drafting)], without))
    (line,) = [line for line in table.splitlines() if line.startswith("dispatch (us)")]
    assert line.split(None, 4) == ["dispatch", "(us)", "500", "100", "+400.0 %  by the first 8 rounds"]
    assert "by the first" not in stats_table(stats_json([Trace(prompt_tokens=1, rounds=drafting)], turns))
