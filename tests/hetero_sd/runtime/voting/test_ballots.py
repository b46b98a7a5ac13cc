"""What answers say and weigh."""

from __future__ import annotations

import random
import re

import pytest

from hetero_sd.runtime.voting.ballots import Ballot, count, what_it_says


def ballot(says: str | None, entropy_bits: float) -> Ballot:
    return Ballot("", says, entropy_bits, 5)


@pytest.mark.parametrize(
    ("text", "pattern", "says"),
    [
        ("first\n last line \n\n", None, "last line"),
        ("  \n", None, None),
        ("so 4, or 17; it is 5.", r"\d+", "5"),
        ("answer: 12\nanswer: 13", r"answer: (\d+)", "13"),
        ("answer: none", r"answer: (\d+)", None),
        ("a", r"a(b)?", None),
        ("x = 3\ny = 4\n", r"^y = (.*)$", "4"),
    ],
)
def test_what_a_text_says(text: str, pattern: str | None, says: str | None) -> None:
    assert what_it_says(text, None if pattern is None else re.compile(pattern, re.MULTILINE)) == says


def test_weights_are_inverse_entropies() -> None:
    ballots = [ballot("a", 0.5), ballot("b", 0.1), ballot("a", 0.25), ballot(None, 0.01)]
    first, second = count(ballots)
    assert (first.says, first.ballots, first.weight) == ("b", 1, pytest.approx(10.0))
    assert (second.says, second.ballots, second.weight) == ("a", 2, pytest.approx(2.0 + 4.0))
    assert second.entropy_bits == pytest.approx(0.375)
    assert [one.says for one in count(ballots, weighted=False)] == ["a", "b"]  # the negative control
    assert ballot("a", 0.0).weight == pytest.approx(1e10)
    assert count([ballot(None, 1.0)]) == []


def test_ties_go_to_the_surer_and_then_to_the_first() -> None:
    tied = [ballot("a", 0.4), ballot("b", 0.2), ballot("c", 0.2)]
    assert [one.says for one in count(tied, weighted=False)] == ["b", "c", "a"]
    assert [one.says for one in count([ballot("x", 1.0), ballot("y", 1.0)])] == ["x", "y"]


@pytest.mark.parametrize(("right_bits", "wrong_bits", "gains"), [(0.2, 0.8, True), (0.8, 0.2, False)])
def test_who_is_right_when_it_is_sure_gains_by_it(right_bits: float, wrong_bits: float, gains: bool) -> None:
    """Made chains, right in 4 of 10: where the right ones are the surer ones the weights help, else they harm."""
    rng = random.Random(1)
    weighted = majority = 0
    for _ in range(500):
        chains = []
        for _ in range(7):
            right = rng.random() < 0.4
            bits = (right_bits if right else wrong_bits) * rng.uniform(0.5, 1.5)
            chains.append(ballot("right" if right else f"wrong {rng.randrange(2)}", bits))
        weighted += count(chains)[0].says == "right"
        majority += count(chains, weighted=False)[0].says == "right"
    assert (weighted > majority + 50) == gains
    assert (weighted < majority - 50) == (not gains)
