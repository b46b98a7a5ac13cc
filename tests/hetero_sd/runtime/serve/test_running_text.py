"""How an answer of a batch chooses among rows that were drafted: its law, by enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hetero_sd.runtime.decode.sampling import Sampling, probabilities
from hetero_sd.runtime.model.protocol import NotFiniteError, Row
from hetero_sd.runtime.model.slot_pool import Slot
from hetero_sd.runtime.serve.branches import Branch, Drafted
from hetero_sd.runtime.serve.engine import GenerationRequest
from hetero_sd.runtime.serve.running_text import RunningText
from hetero_sd.runtime.session import Session

IDS, DRAFTED = 4, [2, 1]
LOGITS = np.random.default_rng(5).standard_normal((3, IDS)).astype(np.float32)


class Script:
    """Draws what it is told, and says with what probability."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self._left, self.chance = [*tokens], 1.0

    def draw(self, weights: Any) -> int:
        token = self._left.pop(0)
        self.chance *= weights[token]
        return token


def slot_of(number: int, tokens: list[int]) -> Slot:
    slot = object.__new__(Slot)
    slot.number, slot.model, slot.tokens = number, f"model {number}", tokens  # type: ignore[assignment]
    return slot


def text_of(letters: Callable[..., Session], **options: Any) -> RunningText:
    slot = slot_of(1, [5])
    text = RunningText(letters(chats=False), slot, [5, 6], GenerationRequest([5, 6], options), 0)  # type: ignore[typeddict-item]
    text.take([3])
    slot.tokens.append(6)
    return text


def chosen(text: RunningText, choices: Any = (0, 0, 0)) -> list[int]:
    assert text.rows(1, Drafted(DRAFTED)) == [Row(1, 2, 3), Row(1, 3, 2), Row(1, 4, 1)]
    return text.choose(choices, LOGITS, "target")


def test_samples_have_the_law_of_the_target(letters: Callable[..., Session]) -> None:
    p = [probabilities(row, Sampling(0.7)) for row in LOGITS]
    law: dict[tuple[int, ...], float] = {}
    for tokens in itertools.product(range(IDS), repeat=3):
        text = text_of(letters, temperature=0.7, seed=1)
        text._rng = script = Script(tokens)  # type: ignore[assignment]
        found = tuple(chosen(text))
        law[found] = script.chance
        assert text.past == 2 + len(found)  # the rows of what was accepted, and of the token before
    expected = {(a,): p[0][a] for a in range(IDS) if a != DRAFTED[0]}
    expected |= {(DRAFTED[0], b): p[0][DRAFTED[0]] * p[1][b] for b in range(IDS) if b != DRAFTED[1]}
    accepted = p[0][DRAFTED[0]] * p[1][DRAFTED[1]]
    expected |= {(*DRAFTED, c): accepted * p[2][c] for c in range(IDS)}
    assert law == pytest.approx(expected)
    assert sum(law.values()) == pytest.approx(1.0)
    other = [probabilities(row, Sampling(0.8)) for row in LOGITS]
    assert law[0,] != pytest.approx(other[0][0])  # the negative control


@pytest.mark.parametrize(
    ("choices", "tokens"), [((0, 1, 3), [0]), ((2, 3, 3), [2, 3]), ((2, 1, 3), [2, 1, 3]), ((3, 1, -1), [3])]
)
def test_greedy_takes_drafts_as_far_as_they_are_the_best(
    letters: Callable[..., Session], choices: tuple[int, ...], tokens: list[int]
) -> None:
    text = text_of(letters)
    assert chosen(text, choices) == tokens
    assert text.past == 2 + len(tokens)


def test_a_row_that_counts_must_be_finite(letters: Callable[..., Session]) -> None:
    with pytest.raises(NotFiniteError, match="after 4 tokens"):
        chosen(text_of(letters), (2, -1, 0))


BRANCH = [0, 3]
BRANCH_LOGITS = np.random.default_rng(6).standard_normal((3, IDS)).astype(np.float32)


def chosen_with_branch(text: RunningText, choices: Any = (0,) * 6) -> tuple[list[int], Branch]:
    branch = Branch(slot_of(7, [5, 6]), BRANCH)
    rows = text.rows(1, Drafted(DRAFTED, branch))
    assert rows == [Row(1, 2, 3), Row(1, 3, 2), Row(1, 4, 1), Row(7, 2, 3), Row(7, 3, 0), Row(7, 4, 3)]
    return text.choose(choices, [*LOGITS, *BRANCH_LOGITS], "target"), branch


def test_samples_have_the_law_of_the_target_with_a_branch(letters: Callable[..., Session]) -> None:
    """The first token is drawn from the row that both have; what follows it from the rows after it."""
    p, after = ([probabilities(row, Sampling(0.7)) for row in rows] for rows in (LOGITS, BRANCH_LOGITS))
    law: dict[tuple[int, ...], float] = {}
    for tokens in itertools.product(range(IDS), repeat=3):
        text = text_of(letters, temperature=0.7, seed=1)
        text._rng = script = Script(tokens)  # type: ignore[assignment]
        found, branch = chosen_with_branch(text)
        law[tuple(found)] = script.chance
        assert branch.won == (found[0] == BRANCH[0])
        assert (text.slot.number, branch.slot.number) == ((7, 1) if branch.won else (1, 7))
        assert text.slot.tokens == [5, 6, 3, *found[:-1]]
        assert branch.slot.tokens == [5, 6, 3]
    expected = {(a,): p[0][a] for a in range(IDS) if a not in (DRAFTED[0], BRANCH[0])}
    for drafted, rows in ((DRAFTED, p), (BRANCH, [p[0], *after[1:]])):
        first, both = rows[0][drafted[0]], rows[0][drafted[0]] * rows[1][drafted[1]]
        expected |= {(drafted[0], b): first * rows[1][b] for b in range(IDS) if b != drafted[1]}
        expected |= {(*drafted, c): both * rows[2][c] for c in range(IDS)}
    assert law == pytest.approx(expected)
    assert sum(law.values()) == pytest.approx(1.0)
    assert after[1][1] != pytest.approx(p[1][1])  # the negative control: other rows have another law


@pytest.mark.parametrize(
    ("choices", "tokens"),
    [
        ((0, 1, 3, 0, 3, 2), [0, 3, 2]),
        ((0, 1, 3, 0, 1, -1), [0, 1]),
        ((2, 1, 3, 2, 3, 2), [2, 1, 3]),
        ((1, -1, -1, 1, -1, -1), [1]),
    ],
)
def test_greedy_goes_on_in_the_branch_that_begins_right(
    letters: Callable[..., Session], choices: tuple[int, ...], tokens: list[int]
) -> None:
    text = text_of(letters)
    assert chosen_with_branch(text, choices)[0] == tokens
    text.take(tokens)
    last = text.trace.rounds[-1]
    assert (last.drafted, last.accepted) == (4 if tokens[0] == BRANCH[0] else 2, len(tokens) - 1)


def test_a_row_of_a_branch_that_counts_must_be_finite(letters: Callable[..., Session]) -> None:
    with pytest.raises(NotFiniteError, match="after 4 tokens"):
        chosen_with_branch(text_of(letters), (0, 1, 1, 0, -1, 0))
