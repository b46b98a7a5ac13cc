"""What drafting may lose, by hand: steps of 10 ms, rounds of 25 ms."""

from __future__ import annotations

import pytest

from hetero_sd.runtime.decode.loss_bank import ALLOWANCE_STEPS, LOSS_SHARE, LossBank

PLAIN_S = 0.010


def round_s(source: str, gamma: int) -> float:
    return 0.025


def settled(bank: LossBank) -> float:
    bank.settle(PLAIN_S, round_s)
    return bank.held_s


def test_it_begins_with_an_allowance_and_grows_with_the_time_that_passes() -> None:
    bank = LossBank()
    assert bank.held_s == 0
    assert settled(bank) == pytest.approx(ALLOWANCE_STEPS * PLAIN_S)
    for _ in range(100):
        bank.note_plain()
    assert settled(bank) == pytest.approx(ALLOWANCE_STEPS * PLAIN_S + LOSS_SHARE * 100 * PLAIN_S)
    assert settled(bank) == pytest.approx(ALLOWANCE_STEPS * PLAIN_S + LOSS_SHARE * 100 * PLAIN_S)  # paid for once


@pytest.mark.parametrize(("tokens", "change_s"), [(1, -0.015), (2, -0.005), (4, 0.015)])
def test_a_round_pays_for_what_it_takes_beyond_its_tokens(tokens: int, change_s: float) -> None:
    bank = LossBank()
    before = settled(bank)
    bank.note_drafted("model", 3, tokens)
    assert settled(bank) - before == pytest.approx(change_s + LOSS_SHARE * 0.025)


def test_tries_that_fail_make_the_share_smaller_until_one_gains() -> None:
    bank = LossBank()
    before = settled(bank)
    for _ in range(50):
        bank.fail()
    bank.note_plain()
    least = settled(bank) - before
    assert least == pytest.approx(LOSS_SHARE / 2 * PLAIN_S)
    bank.confirm()
    bank.note_plain()
    assert settled(bank) - before - least == pytest.approx(LOSS_SHARE * PLAIN_S)


def test_a_new_text_forgets_most_of_a_debt() -> None:
    bank = LossBank()
    settled(bank)
    bank.note_reading(1.0)
    assert settled(bank) < -0.9
    bank.floor_s = -1.0
    bank.begin(PLAIN_S, round_s)
    assert (bank.held_s, bank.floor_s) == (pytest.approx(-8 * PLAIN_S), 0.0)
