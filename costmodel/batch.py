"""Rounds of a batch: which tokens of prompts are read beside running texts.

A round calls the target a few times, and each call reads the weights once: for a chunk of a prompt, or for rows of
several texts. Time rises in stairs with the rows, so that those that a call has to spare cost nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from costmodel.prompt_chunks import next_pieces

LEAST_SHARED = 8  # rows that are worth the copies of a block when another text has them
BOUND_STEPS = 10.0  # steps of one text alone that a running text waits at most between its tokens, where nobody says


class StepTimes(Protocol):
    """Seconds of the target's calls, as they are believed to be now.

    Attributes:
        chunks: tokens of a prompt that can be read at once, ascending.
    """

    chunks: Sequence[int]

    def rows_s(self, rows: int) -> float:
        """Calls of so many rows of several texts, 0 of none."""

    def read_s(self, tokens: int, past: int) -> float:
        """A call that reads so many tokens of a prompt, at most the widest chunk, after `past` of it."""


@dataclass(frozen=True)
class Unread:
    """A prompt that is being read: tokens that were, and that are left."""

    done: int
    left: int


@dataclass(frozen=True)
class Reading:
    """What a round reads.

    Attributes:
        pieces: (prompt, tokens) of a call each, in order; they come before the rows.
        riding: (prompt, tokens) that are rows beside those of the running texts.
    """

    pieces: tuple[tuple[int, int], ...] = ()
    riding: tuple[tuple[int, int], ...] = ()


def plan_reading(prompts: Sequence[Unread], running: int, bound_s: float, times: StepTimes) -> Reading:
    """What a round reads of prompts, in their order, so that it takes no longer than `bound_s`.

    Whole chunks as far as they fit beside a row of every running text, wide ones first; a text whose prompt is through
    runs at once.
    Where none fits, as many rows as do, one at least: no prompt starves, and the bound is one that cannot be met then.
    Rows that the call of the running texts has to spare are always used. Where nothing runs, one piece is read, so that
    what comes meanwhile is seen.
    """
    rows, used, pieces = running, 0.0, list[tuple[int, int]]()
    todo = [prompt.left for prompt in prompts]
    for i, prompt in enumerate(prompts):
        while todo[i]:
            if running == 0 and pieces:
                break
            past = prompt.done + prompt.left - todo[i]
            for tokens, _ in next_pieces(todo[i], times.chunks):
                takes, ends = times.read_s(tokens, past), tokens == todo[i]
                if not running or used + takes + times.rows_s(rows + ends) <= bound_s:
                    break
            else:
                break
            pieces.append((i, tokens))
            used, todo[i], rows = used + takes, todo[i] - tokens, rows + ends
        if todo[i]:
            break
    left = sum(todo)
    if not running or not left:
        return Reading(tuple(pieces))
    free = times.rows_s(rows)

    def fits(riding: int) -> bool:
        takes = times.rows_s(rows + riding)
        return takes <= free or (not pieces and (riding == 1 or takes <= bound_s))

    riding = 0
    while riding < left and fits(riding + 1):
        riding += 1
    taken = []
    for i, tokens in enumerate(todo):
        if part := min(tokens, riding):
            taken.append((i, part))
            riding -= part
    return Reading(tuple(pieces), tuple(taken))


def admits(at_work: int, bound_s: float, times: StepTimes) -> bool:
    """Whether one more text keeps the time between tokens within the bound, once all are running."""
    return at_work == 0 or times.rows_s(at_work + 1) <= bound_s
