from __future__ import annotations

import random

import pytest

from costmodel.contention import Load
from costmodel.early_verification import early_round
from costmodel.speculative import expected_tokens, overlapped_round

LOOP_S, HAND_OVER_S = 0.004, 0.002


def simulate(alpha: float, gamma: int, least: int, draft_s: float, verify_s: float, each_s: float) -> float:
    """Tokens a second of the two threads' protocol, message by message, over a long text with random misses.

    A step of the target takes verify_s and each_s for every draft. The drafter's copy of the text is right or not,
    token by token, by a coin; a wrong one is only found when the target has decided its place.
    """
    rng, tokens, now = random.Random(3), 0, 0.0
    copy: list[tuple[float, bool]] = []  # drafts after the text: when they are ready, and whether they are right
    ends = draft_s  # of the drafter's step

    def drafts_until(time: float) -> None:
        nonlocal ends
        while ends <= time and len(copy) < 2 * gamma + 1:
            copy.append((ends, rng.random() < alpha))
            ends += draft_s
        if len(copy) == 2 * gamma + 1:
            ends = max(ends, time + HAND_OVER_S + draft_s)  # it waits for the next verdict

    while tokens < 40_000:
        drafts_until(now)
        while len(copy) < least:
            now = max(now, ends)
            drafts_until(now)
        ready = copy[:gamma]
        now += verify_s + each_s * len(ready) + LOOP_S
        drafts_until(now)
        right = next((i for i, (_, good) in enumerate(ready) if not good), len(ready))
        tokens += right + 1
        after = copy[right] if len(copy) > right else (ends, rng.random() < alpha)
        if right == len(ready) and after[1]:
            if len(copy) > right:
                del copy[: right + 1]
            else:
                copy, ends = [], ends + draft_s  # the guess that is being made is the text's token
        else:
            idle = len(copy) == 2 * gamma + 1
            copy, ends = [], (now if idle else max(now, ends)) + HAND_OVER_S + draft_s
    return tokens / now


CASES = [
    (0.8, 4, 0, 0.07, 0.4, 0.01),
    (0.8, 4, 4, 0.07, 0.4, 0.01),
    (0.6, 2, 0, 0.11, 0.3, 0.02),
    (0.9, 3, 1, 0.05, 0.4, 0.0),
    (0.7, 1, 0, 0.25, 0.4, 0.0),
]


@pytest.mark.parametrize(("alpha", "gamma", "least", "draft_s", "verify_s", "each_s"), CASES)
def test_it_agrees_with_a_simulation_of_the_protocol(
    alpha: float, gamma: int, least: int, draft_s: float, verify_s: float, each_s: float
) -> None:
    found = early_round(
        *(alpha, gamma, least, Load(draft_s, 0, 0), lambda n: Load(verify_s + each_s * (n - 1), 0, 0)),
        *(LOOP_S, 1e12, HAND_OVER_S),
    )
    simulated = simulate(alpha, gamma, least, draft_s, verify_s, each_s)
    assert found.tokens_per_s == pytest.approx(simulated, rel=0.025)
    assert simulate(min(1.0, alpha + 0.1), gamma, least, draft_s, verify_s, each_s) > 1.03 * found.tokens_per_s


@pytest.mark.parametrize(("alpha", "gamma", "draft_s"), [(0.9, 3, 0.05), (0.8, 4, 0.12), (1.0, 4, 0.01), (0.5, 2, 0.1)])
def test_waiting_for_all_is_the_closed_form(alpha: float, gamma: int, draft_s: float) -> None:
    draft, step = Load(draft_s, 0.0, 0.0), Load(0.4, 0.0, 0.0)
    closed = overlapped_round(alpha, gamma, draft, step, LOOP_S, 1e12, HAND_OVER_S)
    found = early_round(alpha, gamma, gamma, draft, lambda n: step, LOOP_S, 1e12, HAND_OVER_S)
    assert found.tokens_per_s == pytest.approx(closed.tokens_per_s, rel=0.015)
    assert found.tokens == pytest.approx(expected_tokens(alpha, gamma), rel=1e-3)


def test_nothing_accepted_with_and_without_waiting_by_hand() -> None:
    """Without waiting every step of the target is a plain one; waiting for one draft, it verifies that in vain."""
    draft, loop = Load(0.1, 0.0, 0.0), 0.01
    early = early_round(0.0, 2, 0, draft, lambda n: Load(0.3 + 0.05 * n, 0.0, 0.0), loop, 1e12)
    assert (early.tokens, early.time_s, early.draft_s) == pytest.approx((1.0, 0.35 + loop, 0.0))
    waits = early_round(0.0, 2, 1, draft, lambda n: Load(0.3 + 0.05 * n, 0.0, 0.0), loop, 1e12)
    assert waits.verify_s == pytest.approx(0.4)
    assert 0.1 <= waits.draft_s <= 0.2  # a draft, and the rest of the running step


def test_acceptance_by_position_counts_from_the_last_miss() -> None:
    draft, step = Load(0.02, 0.0, 0.0), Load(0.4, 0.0, 0.0)
    flat, rising = (early_round(a, 2, 2, draft, lambda n: step, 0.0, 1e12) for a in (0.7, [0.7, 0.7, 0.7, 0.9]))
    assert rising.tokens_per_s > flat.tokens_per_s


def test_both_reading_dram_take_longer() -> None:
    """Both wait for memory all the time and ask for 10 and 20 of 15 GB/s: twice as long while both run."""
    draft, step = Load(0.15, 0.15, 0.15 * 10e9), Load(0.4, 0.4, 0.4 * 20e9)
    alone, beside = (early_round(0.0, 4, 0, draft, lambda n: step, 0.0, limit) for limit in (1e12, 15e9))
    assert alone.time_s == pytest.approx(0.4)
    assert beside.time_s == pytest.approx(0.8)
