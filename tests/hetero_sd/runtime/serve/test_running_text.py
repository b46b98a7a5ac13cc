"""How an answer of a batch chooses among rows that were drafted: its law, by enumeration."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hetero_sd.runtime.decode.sampling import Sampling, probabilities
from hetero_sd.runtime.model.protocol import NotFiniteError, Row
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


def text_of(letters: Callable[..., Session], **options: Any) -> RunningText:
    slot: Any = SimpleNamespace(number=1, tokens=[5])
    text = RunningText(letters(chats=False), slot, [5, 6], GenerationRequest([5, 6], options), 0)  # type: ignore[typeddict-item]
    text.take([3])
    slot.tokens.append(6)
    return text


def chosen(text: RunningText, choices: Any = (0, 0, 0)) -> list[int]:
    assert text.rows(1, DRAFTED) == [Row(1, 2, 3), Row(1, 3, 2), Row(1, 4, 1)]
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
