"""What a round reads beside running texts: within the bound, in order, and something always."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.batch import Reading, Unread, admits, plan_reading


@dataclass(frozen=True)
class Stairs:
    """Calls of 1, 2, 4 and 8 rows, and pieces of prompts in calls of 8 and 32."""

    rows: tuple[float, float, float, float] = (2.0, 2.2, 2.4, 3.0)
    eight_s: float = 3.0
    chunk_s: float = 6.0
    chunks: tuple[int, ...] = (32,)

    def rows_s(self, rows: int) -> float:
        whole, rest = divmod(rows, 8)
        return whole * self.rows[3] + (self.rows[(rest - 1).bit_length()] if rest else 0.0)

    def read_s(self, tokens: int, past: int) -> float:
        wide_s = 1.5 * self.chunk_s if tokens > 32 else self.chunk_s
        return (self.eight_s if tokens <= 8 else wide_s) + 0.001 * past


def read_in(reading: Reading, prompts: int) -> list[int]:
    """Tokens of each prompt."""
    every = [*reading.pieces, *reading.riding]
    return [sum(tokens for i, tokens in every if i == prompt) for prompt in range(prompts)]


def takes_s(reading: Reading, prompts: list[Unread], running: int, times: Stairs) -> tuple[float, int]:
    """Seconds and rows of the round, counted apart from the code under test."""
    done, seconds, rows = [p.done for p in prompts], 0.0, running
    for i, tokens in reading.pieces:
        seconds += times.read_s(tokens, done[i])
        done[i] += tokens
        rows += done[i] == prompts[i].done + prompts[i].left
    rows += sum(tokens for _, tokens in reading.riding)
    return seconds + times.rows_s(rows), rows


@pytest.mark.parametrize(
    ("left", "running", "bound_s", "pieces", "riding"),
    [
        ([100, 50], 0, 1.0, [(0, 32)], []),  # nothing waits: one piece, whatever the bound
        ([100], 3, 9.0, [(0, 32)], [(0, 1)]),  # and the row that a call of four has to spare
        ([100], 4, 15.0, [(0, 32), (0, 32)], []),
        ([40, 50], 4, 18.5, [(0, 32), (0, 8), (1, 32)], [(1, 3)]),  # the first one's text runs then: five rows of eight
        ([100], 3, 3.0, [], [(0, 5)]),  # no chunk fits: as many rows as do
        ([3, 9], 1, 3.0, [], [(0, 3), (1, 4)]),
        ([100], 8, 3.0, [], [(0, 1)]),  # the bound cannot be met: a row nevertheless
    ],
)
def test_what_is_read(
    left: list[int], running: int, bound_s: float, pieces: list[tuple[int, int]], riding: list[tuple[int, int]]
) -> None:
    found = plan_reading([Unread(0, n) for n in left], running, bound_s, Stairs())
    assert (list(found.pieces), list(found.riding)) == (pieces, riding)


@pytest.mark.parametrize(
    ("left", "running", "bound_s", "pieces"),
    [
        (200, 0, 1.0, [(0, 128)]),
        (200, 4, 14.0, [(0, 128)]),  # the wide chunk as long as it fits
        (200, 4, 11.0, [(0, 32)]),
        (200, 4, 40.0, [(0, 128), (0, 32), (0, 32), (0, 8)]),  # 72 left: a wide chunk would be half empty
        (100, 4, 14.0, [(0, 100)]),
    ],
)
def test_wide_chunks_are_read_where_they_fit(
    left: int, running: int, bound_s: float, pieces: list[tuple[int, int]]
) -> None:
    found = plan_reading([Unread(0, left)], running, bound_s, Stairs(chunks=(32, 128)))
    assert list(found.pieces) == pieces


@given(
    prompts=st.lists(st.builds(Unread, st.integers(0, 300), st.integers(2, 200)), min_size=1, max_size=5),
    running=st.integers(0, 20),
    bound_s=st.floats(2.0, 60.0),
    chunk_s=st.floats(2.0, 30.0),
)
def test_the_bound_holds_and_something_is_read(
    prompts: list[Unread], running: int, bound_s: float, chunk_s: float
) -> None:
    times = Stairs(chunk_s=chunk_s)
    found = plan_reading(prompts, running, bound_s, times)
    tokens = read_in(found, len(prompts))
    assert sum(tokens) > 0
    assert all(read <= prompt.left for read, prompt in zip(tokens, prompts, strict=True))
    first = next((i for i, prompt in enumerate(prompts) if tokens[i] < prompt.left), len(prompts))
    assert not any(tokens[first + 1 :])  # in order
    seconds, rows = takes_s(found, prompts, running, times)
    if running and seconds > bound_s:
        assert not found.pieces
        assert times.rows_s(rows) in (times.rows_s(running), times.rows_s(running + 1))
    if running and found.pieces:  # the negative control: with a bound that is less the same is too much
        tight = plan_reading(prompts, running, seconds - 1e-6, times)
        assert takes_s(tight, prompts, running, times)[0] < seconds


def test_a_text_more_is_admitted_while_all_rows_fit() -> None:
    assert [admits(n, 3.0, Stairs()) for n in (0, 1, 7, 8)] == [True, True, True, False]
    assert admits(0, 0.1, Stairs())  # alone, whatever the bound
