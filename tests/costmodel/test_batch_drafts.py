"""Rows shared among drafts: against every way to share them, and one text against the formula of a single one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.batch_drafts import Offer, drafts_may_pay, share_rows
from costmodel.speculative import RoundCosts, expected_tokens, sequential_round


@dataclass(frozen=True)
class Stairs:
    """Calls of 1, 2, 4 and 8 rows."""

    rows: tuple[float, float, float, float]
    chunk: int = 32

    def rows_s(self, rows: int) -> float:
        whole, rest = divmod(rows, 8)
        return whole * self.rows[3] + (self.rows[(rest - 1).bit_length()] if rest else 0.0)

    def read_s(self, tokens: int, past: int) -> float:
        raise AssertionError("drafts are rows: nothing of a prompt is read")


CHEAP, STEEP = Stairs((2.0, 2.1, 2.2, 2.5)), Stairs((2.0, 4.0, 8.0, 16.0))


def speed(offers: Sequence[Offer], gammas: Sequence[int], rows: int, other_s: float, times: Stairs) -> float:
    tokens = sum(expected_tokens(offer.alpha, gamma) for offer, gamma in zip(offers, gammas, strict=True))
    return tokens / (other_s + times.rows_s(rows + sum(gammas)))


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
    gammas = share_rows(offers, rows, len(offers), other_s, 1e9, times)
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
        assert share_rows([Offer(alpha, 7)], 1, 1, 0.1, 1e9, times) == [best]


def test_the_draft_length_falls_as_rows_fill() -> None:
    each = [share_rows([Offer(0.8, 7)] * n, n, n, 0.1, 1e9, CHEAP)[0] for n in (1, 2, 4, 8)]
    assert each == [7, 3, 1, 0]
    assert [sum(share_rows([Offer(0.8, 7)] * 3, rows, 3, 0.1, 1e9, CHEAP)) for rows in (3, 5)] == [5, 3]


def test_texts_that_accept_more_get_more() -> None:
    assert share_rows([Offer(0.9, 7), Offer(0.6, 7)], 2, 2, 0.1, 1e9, CHEAP) == [5, 1]
    assert share_rows([Offer(0.9, 2), Offer(0.0, 7)], 2, 2, 0.1, 1e9, CHEAP) == [2, 0]
    assert share_rows([Offer(0.9, 7)], 1, 1, 0.1, 1e9, STEEP) == [0]


def test_drafts_do_not_break_the_bound() -> None:
    assert share_rows([Offer(0.9, 7)], 1, 1, 0.1, 2.35, CHEAP) == [3]
    assert share_rows([Offer(0.9, 7)] * 3, 3, 3, 0.1, 0.0, CHEAP) == [1, 0, 0]  # a row that is free in any case


def test_where_no_draft_can_pay_none_is_looked_for() -> None:
    assert [drafts_may_pay(n, n, 0.1, 7, CHEAP) for n in (1, 5, 7, 8, 9)] == [True, True, True, False, True]
    assert not drafts_may_pay(1, 1, 0.1, 7, STEEP)
