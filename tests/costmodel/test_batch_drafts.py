"""Rows shared among drafts: against every way to share them, and one text against the formula of a single one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.batch_drafts import choose_drafts, drafts_may_pay
from costmodel.draft_rows import NOTHING, Offer, RoundSoFar, share_rows
from costmodel.speculative import RoundCosts, expected_tokens, sequential_round


@dataclass(frozen=True)
class Stairs:
    """Calls of 1, 2, 4 and 8 rows."""

    rows: tuple[float, float, float, float]
    chunks: tuple[int, ...] = (32,)

    def rows_s(self, rows: int) -> float:
        whole, rest = divmod(rows, 8)
        return whole * self.rows[3] + (self.rows[(rest - 1).bit_length()] if rest else 0.0)

    def read_s(self, tokens: int, past: int) -> float:
        return 3.0


CHEAP, STEEP = Stairs((2.0, 2.1, 2.2, 2.5)), Stairs((2.0, 4.0, 8.0, 16.0))


def speed(offers: Sequence[Offer], gammas: Sequence[int], rows: int, other_s: float, times: Stairs) -> float:
    tokens = sum(expected_tokens(offer.alpha, gamma) for offer, gamma in zip(offers, gammas, strict=True))
    return tokens / (other_s + times.rows_s(rows + sum(gammas)))


def share(offers: Sequence[Offer], rows: int, other_s: float, bound_s: float, times: Stairs) -> list[int]:
    return share_rows(offers, RoundSoFar(rows, len(offers), other_s, bound_s), times).gammas


times_of_calls = st.lists(st.floats(0.05, 3.0), min_size=4, max_size=4).map(
    lambda steps: Stairs((steps[0], *(sum(steps[: i + 1]) for i in (1, 2, 3))))
)


@given(
    offers=st.lists(st.builds(Offer, st.floats(0.0, 1.0), st.integers(0, 4)), min_size=1, max_size=4),
    riding=st.integers(0, 3),
    other_s=st.floats(0.0, 1.0),
    times=times_of_calls,
)
def test_no_other_way_is_faster(offers: list[Offer], riding: int, other_s: float, times: Stairs) -> None:
    rows = len(offers) + riding
    gammas = share(offers, rows, other_s, 1e9, times)
    assert all(gamma <= offer.most for gamma, offer in zip(gammas, offers, strict=True))
    found = speed(offers, gammas, rows, other_s, times)
    ways = itertools.product(*(range(offer.most + 1) for offer in offers))
    best = max(speed(offers, way, rows, other_s, times) for way in ways)
    assert found == pytest.approx(best)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8, 0.95])
def test_one_text_gets_the_draft_length_of_the_single_formula(alpha: float) -> None:
    for times in (CHEAP, STEEP):
        costs = RoundCosts(0.0, 0.0, times.rows_s, dispatch_s=0.1)
        best = max(range(8), key=lambda gamma: sequential_round(alpha, gamma, costs).tokens_per_s)
        assert share([Offer(alpha, 7)], 1, 0.1, 1e9, times) == [best]


def test_the_draft_length_falls_as_rows_fill() -> None:
    each = [share([Offer(0.8, 7)] * n, n, 0.1, 1e9, CHEAP)[0] for n in (1, 2, 4, 8)]
    assert each == [7, 3, 1, 0]
    assert [sum(share([Offer(0.8, 7)] * 3, rows, 0.1, 1e9, CHEAP)) for rows in (3, 5)] == [5, 3]


def test_texts_that_accept_more_get_more() -> None:
    assert share([Offer(0.9, 7), Offer(0.6, 7)], 2, 0.1, 1e9, CHEAP) == [5, 1]
    assert share([Offer(0.9, 2), Offer(0.0, 7)], 2, 0.1, 1e9, CHEAP) == [2, 0]
    assert share([Offer(0.9, 7)], 1, 0.1, 1e9, STEEP) == [0]


def test_drafts_do_not_break_the_bound() -> None:
    assert share([Offer(0.9, 7)], 1, 0.1, 2.35, CHEAP) == [3]
    assert share([Offer(0.9, 7)] * 3, 3, 0.1, 0.0, CHEAP) == [1, 0, 0]  # a row that is free in any case


def test_where_no_draft_can_pay_none_is_looked_for() -> None:
    assert [drafts_may_pay(n, n, 0.1, 7, CHEAP) for n in (1, 5, 7, 8, 9)] == [True, True, True, False, True]
    assert not drafts_may_pay(1, 1, 0.1, 7, STEEP)


SMALL = Stairs((0.3, 0.32, 0.34, 0.4))  # of a draft model


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8, 0.95])
def test_one_text_with_a_draft_model_gets_the_draft_length_of_the_single_formula(alpha: float) -> None:
    for times, small in ((CHEAP, SMALL), (CHEAP, CHEAP), (STEEP, SMALL)):
        costs = RoundCosts(small.rows_s(1), small.rows_s(1), times.rows_s, dispatch_s=0.1)
        rounds = [sequential_round(alpha, gamma, costs) for gamma in range(8)]
        best = max(rounds, key=lambda r: r.tokens_per_s)
        found = share_rows([Offer(alpha, 7, 1)], RoundSoFar(1, 1, 0.1, 1e9), times, small)
        assert (found.gammas, found.tokens_per_s) == ([best.gamma], pytest.approx(best.tokens_per_s))
        assert found.drafting_s == pytest.approx(best.gamma * small.rows_s(1))


def test_a_step_of_the_draft_model_is_shared_by_all_texts() -> None:
    """Two texts alike: each step has two rows, the first one two more for a text that takes in three tokens."""
    offers, so_far = [Offer(0.8, 7, 1), Offer(0.8, 7, 3)], RoundSoFar(2, 2, 0.1, 1e9)
    found = share_rows(offers, so_far, CHEAP, SMALL)
    assert found.gammas == [3, 3]
    assert found.drafting_s == pytest.approx(SMALL.rows_s(4) + 2 * SMALL.rows_s(2))
    tokens = 2 * expected_tokens(0.8, 3)
    assert found.round_s == pytest.approx(0.1 + found.drafting_s + CHEAP.rows_s(8))
    assert found.tokens_per_s == pytest.approx(tokens / found.round_s)
    each = [
        share_rows([Offer(0.8, 7, 1)] * n, RoundSoFar(n, n, 0.1, 1e9), CHEAP, SMALL).gammas[0] for n in (1, 2, 4, 8)
    ]
    assert each == sorted(each, reverse=True)
    assert each[-1] == 0 < each[0]


@given(
    offers=st.lists(
        st.builds(Offer, st.floats(0.0, 1.0), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=4
    ),
    other_s=st.floats(0.0, 1.0),
    times=times_of_calls,
    small=times_of_calls,
)
def test_a_draft_model_is_never_believed_to_slow_the_batch_down(
    offers: list[Offer], other_s: float, times: Stairs, small: Stairs
) -> None:
    found = share_rows(offers, RoundSoFar(len(offers), len(offers), other_s, 1e9), times, small)
    assert found.tokens_per_s >= len(offers) / (other_s + times.rows_s(len(offers)))
    tokens = sum(expected_tokens(offer.alpha, gamma) for offer, gamma in zip(offers, found.gammas, strict=True))
    steps_s = 0.0
    for step in range(4):
        going = [offer for offer, gamma in zip(offers, found.gammas, strict=True) if gamma > step and offer.unread]
        steps_s += small.rows_s(sum(offer.unread if step == 0 else 1 for offer in going))
    round_s = other_s + steps_s + times.rows_s(len(offers) + sum(found.gammas))
    assert (found.round_s, found.tokens_per_s) == (pytest.approx(round_s), pytest.approx(tokens / round_s))


def test_drafts_of_a_model_are_chosen_where_they_are_worth_their_time() -> None:
    so_far = RoundSoFar(1, 1, 0.1, 1e9)

    def chosen(found: Offer, model: Offer, left: int = 100, small: Stairs = SMALL) -> tuple[int, bool, int]:
        made = choose_drafts([found], [model], left, so_far, CHEAP, small)
        return made.gammas[0], made.modelled[0], sum(tokens for _, tokens in made.pieces)

    assert chosen(NOTHING, Offer(0.8, 7, 1)) == (3, True, 0)
    assert chosen(Offer(0.7, 7), Offer(0.72, 7, 1)) == (7, False, 0)  # a little better, but not for nothing
    assert chosen(Offer(0.3, 7), Offer(0.8, 7, 1)) == (3, True, 0)
    assert chosen(NOTHING, Offer(0.8, 7, 1), small=CHEAP) == (0, False, 0)
    assert chosen(NOTHING, Offer(0.8, 7, 80)) == (0, False, 79)  # three pieces of 3 s, gained back on 100 tokens
    assert chosen(NOTHING, Offer(0.8, 7, 80), left=5) == (0, False, 0)
    tight = choose_drafts([NOTHING], [Offer(0.8, 7, 80)], 100, RoundSoFar(1, 1, 0.1, 8.2), CHEAP, SMALL)
    assert tight.pieces == [(0, 32), (0, 32)]  # the third one would break the bound


def test_where_a_draft_model_cannot_pay_it_is_not_asked() -> None:
    assert [drafts_may_pay(n, n, 0.1, 7, CHEAP, SMALL) for n in (1, 5, 8)] == [True, True, False]
    assert not drafts_may_pay(1, 1, 0.1, 7, CHEAP, CHEAP)
