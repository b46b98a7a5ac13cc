from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.contention import Load
from costmodel.speculative import (
    RoundCosts,
    all_accepted,
    break_even_alpha,
    break_even_c,
    break_even_slope,
    expected_tokens,
    ngram_round,
    overlapped_round,
    sequential_round,
    speedup,
)

alphas = st.floats(0.0, 1.0, allow_subnormal=False)
gammas = st.integers(0, 16)


@given(alphas, gammas)
def test_expected_tokens_is_the_closed_form(alpha: float, gamma: int) -> None:
    closed = gamma + 1 if alpha > 1 - 1e-9 else (1 - alpha ** (gamma + 1)) / (1 - alpha)
    assert expected_tokens(alpha, gamma) == pytest.approx(closed, rel=1e-6)


def test_expected_tokens_per_position_by_hand() -> None:
    # 1 + 0.9 + 0.9 x 0.5 + 0.9 x 0.5 x 0.5: the last position repeats
    assert expected_tokens([0.9, 0.5], 3) == pytest.approx(1 + 0.9 + 0.45 + 0.225)


@given(st.lists(alphas, min_size=1, max_size=6), gammas)
def test_monte_carlo_of_constant_lists(alpha: list[float], gamma: int) -> None:
    assert expected_tokens([alpha[0]] * 3, gamma) == pytest.approx(expected_tokens(alpha[0], gamma))


def test_monte_carlo() -> None:
    rng = random.Random(0)
    alpha, gamma, rounds = [0.9, 0.7, 0.6], 5, 200_000
    tokens = 0
    for _ in range(rounds):
        tokens += 1
        for position in range(gamma):
            if rng.random() >= alpha[min(position, 2)]:
                break
            tokens += 1
    assert tokens / rounds == pytest.approx(expected_tokens(alpha, gamma), rel=0.01)
    assert tokens / rounds != pytest.approx(expected_tokens([0.9, 0.7, 0.7], gamma), rel=0.01)  # the check can fail


@given(alphas, alphas, gammas)
def test_speedup_rises_with_alpha(a: float, b: float, gamma: int) -> None:
    low, high = sorted((a, b))
    assert speedup(low, gamma, 0.3) <= speedup(high, gamma, 0.3) + 1e-12


@pytest.mark.parametrize(
    ("alpha", "c", "gamma"), [(0.70, 0.169, 3), (0.80, 0.252, 3), (0.90, 0.359, 4), (0.95, 0.432, 6)]
)
def test_points_of_the_classic_formula(alpha: float, c: float, gamma: int) -> None:
    # points on the curve S = 1.68 at the best gamma (derived for the reference paper's reported maximum)
    best = max(range(17), key=lambda g: speedup(alpha, g, c))
    assert best == gamma
    assert speedup(alpha, best, c) == pytest.approx(1.68, abs=0.005)


def test_pays_exactly_if_alpha_exceeds_c() -> None:
    assert speedup(0.31, 1, 0.3) > 1 > speedup(0.29, 1, 0.3)
    assert break_even_alpha(lambda a: speedup(a, 1, 0.3)) == pytest.approx(0.3)
    assert break_even_alpha(lambda a: speedup(a, 4, 1.2)) is None
    assert break_even_alpha(lambda a: 1.5) == 0.0


@given(st.floats(0.1, 0.99), st.integers(1, 16), st.floats(0.0, 0.5))
def test_break_evens_are_where_the_gain_is_one(alpha: float, gamma: int, c: float) -> None:
    assert speedup(alpha, gamma, break_even_c(alpha, gamma)) == pytest.approx(1.0)
    assert speedup(alpha, gamma, c, break_even_slope(alpha, gamma, c)) == pytest.approx(1.0)


def test_sequential_round_by_hand() -> None:
    costs = RoundCosts(2.0, 3.0, lambda n: 10.0 + n, 0.5, lambda rows: 0.1 * rows, lambda tokens: 0.01 * tokens)
    found = sequential_round(0.5, 2, costs)
    # drafts 2 x 2 s, and one second more after full acceptance (0.25); 13 s to verify 3; 0.5 + 0.3 + 0.02 besides
    assert found.draft_s == pytest.approx(4.25)
    assert found.time_s == pytest.approx(4.25 + 13.0 + 0.82)
    assert found.tokens == pytest.approx(1.75)
    assert found.tokens_per_s == pytest.approx(1.75 / 18.07)


@pytest.mark.parametrize(("match", "tokens", "time_s"), [(1.0, 1.75, 13.5), (0.0, 1.0, 11.5), (0.4, 1.3, 12.3)])
def test_rounds_without_a_match_are_plain_steps(match: float, tokens: float, time_s: float) -> None:
    costs = RoundCosts(0.0, 0.0, lambda n: 10.0 + n, 0.5)
    found = ngram_round(match, sequential_round(0.5, 2, costs), sequential_round(0.5, 0, costs))
    assert (found.tokens, found.time_s) == pytest.approx((tokens, time_s))
    assert found.gamma == 2


def test_gamma_0_is_the_target_alone() -> None:
    costs = RoundCosts(2.0, 3.0, lambda n: 10.0 * n, 0.5)
    found = sequential_round(0.9, 0, costs)
    assert (found.tokens, found.time_s, found.draft_s) == (1.0, 10.5, 0.0)


Slow = tuple[float, float]  # how much longer a draft step and a verification take while both run


def simulate_overlap(alpha: float, gamma: int, draft_s: float, verify_s: float, slow: Slow, rounds: int) -> float:
    """Seconds a round of two processors, event by event: each works, waits, is slowed while both read DRAM.

    On a miss the step that runs is ended first.
    """
    rng = random.Random(1)
    slow_draft, slow_verify = slow
    clock = 0.0
    for _ in range(rounds):  # at the start of a round gamma drafts are ready
        left_verify, left_draft = verify_s, draft_s * (gamma + 1)
        while left_verify > 1e-12:
            if left_draft > 1e-12:
                step = min(left_verify * slow_verify, left_draft * slow_draft)
                left_verify -= step / slow_verify
                left_draft -= step / slow_draft
            else:
                step, left_verify = left_verify, 0.0
            clock += step
        hit = all(rng.random() < alpha for _ in range(gamma + 1))
        if hit:
            clock += max(0.0, left_draft)
        else:
            steps = round(left_draft / draft_s, 9)
            clock += (steps - math.floor(steps)) * draft_s + gamma * draft_s
    return clock / rounds


# Of 8 and 10 GB/s, where 0.7 and 0.75 of the time wait for memory: alone at 18 GB/s and more; below, memory takes
# 1 + u times as long, so that 8 / (1 + 0.7 u) + 10 / (1 + 0.75 u) = limit.
#   15 GB/s: 18 + 13 u = 15 (1 + 1.45 u + 0.525 u u), u = (-8.75 + sqrt(8.75^2 + 4 x 7.875 x 3)) / 15.75 = 0.27487
#    9 GB/s: 18 + 13 u = 9 (1 + 1.45 u + 0.525 u u),  u = (-0.05 + sqrt(0.05^2 + 4 x 4.725 x 9)) / 9.45 = 1.37485
SLOW_BY_LIMIT: dict[float, Slow] = {1e12: (1.0, 1.0), 15e9: (1.19241, 1.20615), 9e9: (1.96240, 2.03114)}


def both_read(draft_s: float) -> tuple[Load, Load]:
    return Load(draft_s, 0.7 * draft_s, 8e9 * draft_s), Load(0.4, 0.3, 0.4 * 10e9)


@pytest.mark.parametrize("limit", SLOW_BY_LIMIT)
@pytest.mark.parametrize(("alpha", "gamma", "draft_s"), [(0.9, 3, 0.05), (0.6, 2, 0.2), (0.8, 4, 0.12), (1.0, 4, 0.01)])
def test_overlapped_rounds_agree_with_an_event_simulation(
    alpha: float, gamma: int, draft_s: float, limit: float
) -> None:
    predicted = overlapped_round(alpha, gamma, *both_read(draft_s), 0.0, limit).time_s
    simulated = simulate_overlap(alpha, gamma, draft_s, 0.4, SLOW_BY_LIMIT[limit], 40_000)
    assert predicted == pytest.approx(simulated, rel=0.01)


def test_the_simulation_would_notice_a_wrong_hit_probability() -> None:
    draft, verify = Load(0.05, 0.0, 0.0), Load(0.4, 0.0, 0.0)
    simulated = simulate_overlap(0.9, 3, 0.05, 0.4, (1.0, 1.0), 40_000)
    assert overlapped_round(0.8, 3, draft, verify, 0.0, 1e12).time_s != pytest.approx(simulated, rel=0.01)


def test_the_simulation_would_notice_wrong_slowdowns() -> None:
    """Those of demand over limit alone: memory takes 18 / 15 times as long."""
    simulated = simulate_overlap(0.8, 4, 0.12, 0.4, (1 + 0.2 * 0.7, 1 + 0.2 * 0.75), 40_000)
    assert overlapped_round(0.8, 4, *both_read(0.12), 0.0, 15e9).time_s != pytest.approx(simulated, rel=0.01)


def test_overlap_hides_the_drafter_when_everything_is_accepted() -> None:
    draft, verify = Load(0.05, 0.0, 0.0), Load(0.4, 0.0, 0.0)
    assert overlapped_round(1.0, 4, draft, verify, 0.0, 1e12).time_s == pytest.approx(0.4)  # 5 x 0.05 < 0.4
    assert overlapped_round(0.0, 4, draft, verify, 0.0, 1e12).time_s == pytest.approx(0.4 + 4 * 0.05)


def test_the_rest_of_the_running_step_and_the_hand_over_by_hand() -> None:
    """Nobody reads DRAM; each miss costs gamma steps, the rest of the running one, and the hand-over."""
    verify = Load(0.4, 0.0, 0.0)

    def missed(draft_s: float, gamma: int, hand_over_s: float = 0.0) -> float:
        return overlapped_round(0.0, gamma, Load(draft_s, 0.0, 0.0), verify, 0.01, 1e12, hand_over_s).time_s

    assert missed(0.12, 4) == pytest.approx(0.4 + 0.08 + 4 * 0.12 + 0.01)  # the fourth step ends at 0.48
    assert missed(0.2, 2) == pytest.approx(0.4 + 0.0 + 2 * 0.2 + 0.01)  # the second step ends with the verification
    assert missed(0.12, 2) == pytest.approx(0.4 + 0.0 + 2 * 0.12 + 0.01)  # three steps end before it, at 0.36
    assert missed(0.12, 4, 0.002) == pytest.approx(0.4 + 0.08 + 4 * 0.12 + 0.01 + 0.002)
    half = overlapped_round([0.5, 1.0], 1, Load(0.3, 0.0, 0.0), verify, 0.01, 1e12, 0.002)
    assert half.time_s == pytest.approx(0.5 * 0.6 + 0.5 * (0.4 + 0.2 + 0.3 + 0.002) + 0.01)
    assert (half.draft_s, half.verify_s, half.other_s) == pytest.approx((0.25, 0.4, 0.011))


def test_the_rest_of_the_running_step_is_at_the_speed_of_a_drafter_alone() -> None:
    """Both wait for memory all the time and ask for 10 and 20 of 15 GB/s: twice as long while both run."""
    draft, verify = Load(0.15, 0.15, 0.15 * 10e9), Load(0.4, 0.4, 0.4 * 20e9)
    found = overlapped_round(0.0, 4, draft, verify, 0.0, 15e9).time_s
    assert found == pytest.approx(0.8 + (3 - 0.8 / 0.3) * 0.15 + 4 * 0.15)


def test_the_simulation_would_notice_half_a_step() -> None:
    simulated = simulate_overlap(0.8, 4, 0.12, 0.4, (1.0, 1.0), 40_000)
    half = overlapped_round(0.8, 4, *both_read(0.12), (1 - 0.8**5) * (0.06 - 0.08), 1e12).time_s
    assert half != pytest.approx(simulated, rel=0.01)
    assert overlapped_round(0.8, 4, *both_read(0.12), 0.0, 1e12).time_s == pytest.approx(simulated, rel=0.01)


def test_all_accepted_falls_with_length() -> None:
    values = [all_accepted([0.9, 0.8], count) for count in range(6)]
    assert values[:3] == pytest.approx([1.0, 0.9, 0.72])
    assert all(a >= b for a, b in pairwise(values))
