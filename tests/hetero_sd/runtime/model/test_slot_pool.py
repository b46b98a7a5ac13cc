"""Taking slots and giving them back, and rows that texts have in common."""

from __future__ import annotations

import mmap
import random
import zlib
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sd.runtime.model.cache_blocks import CacheBlocks
from hetero_sd.runtime.model.cache_pages import CachePages
from hetero_sd.runtime.model.slot_pool import Slot, SlotPool


def pool(slots: int) -> SlotPool:
    model: Any = SimpleNamespace(slots=slots, slot=lambda number: f"model {number}", cache=None)
    return SlotPool(model)


def test_a_slot_is_had_by_one() -> None:
    slots = pool(3)
    taken = [slots.take([1, 2]) for _ in range(3)]
    assert {slot.number for slot in taken} == {0, 1, 2}
    assert [slot.model for slot in sorted(taken, key=lambda slot: slot.number)] == ["model 0", "model 1", "model 2"]
    assert slots.free == 0
    slots.give_back(taken[1])
    assert slots.free == 1
    assert slots.take([5]) is taken[1]


def test_the_slot_that_holds_most_is_taken_and_else_the_one_that_loses_least() -> None:
    slots = pool(3)
    for slot, tokens in zip(slots.every, ([1, 2, 3, 4], [1, 2, 9], [7]), strict=True):
        slot.tokens = tokens
    assert slots.kept_rows == 8
    first = slots.take([1, 2, 3, 8])
    assert (first.number, first.tokens) == (0, [1, 2, 3])
    second = slots.take([5, 5])
    assert (second.number, second.tokens) == (2, [])
    slots.give_back(first)
    again = slots.take([1, 2, 3])  # the last token of a text is fed again, for what follows it
    assert (again.number, again.tokens) == (0, [1, 2])


class Rows:
    """A model whose cache has a row of numbers for every token: what it stands for shows whether rows are right."""

    def __init__(self, slots: int, mapped: bool = True) -> None:
        dim, width = (mmap.PAGESIZE // 4 // 4, "float32") if mapped else (1, "float32")  # 4 rows fill a page
        self.cache = CachePages([(slots, 1, CONTEXT, dim)], width, CONTEXT)
        self.slots, self.context = slots, CONTEXT
        self.read = 0

    def slot(self, number: int) -> int:
        return number

    def feed(self, slot: Slot, ids: Sequence[int]) -> None:
        """Write rows that depend on all tokens before, as a model does, and what a chunk pads beyond them."""
        for token in ids:
            slot.tokens.append(token)
            self.cache.arrays[0][slot.number, 0, len(slot.tokens) - 1] = state(slot.tokens)
            self.read += 1
        self.cache.arrays[0][slot.number, 0, len(slot.tokens) : len(slot.tokens) + 3] = -1

    def check(self, pool: SlotPool) -> None:
        """Every slot has the rows of its text, and every block is where its references say."""
        assert pool._blocks is not None
        held = Counter(block for blocks in pool._blocks._mapped for block in blocks)
        held.update(block for text in pool._blocks._kept for block in text.blocks)
        assert held == pool._blocks._references
        assert not pool._blocks._spare & held.keys()
        for slot in pool.every:
            found = self.cache.arrays[0][slot.number, 0, : len(slot.tokens), 0]
            assert found.tolist() == [state(slot.tokens[: i + 1]) for i in range(len(slot.tokens))], slot.number


def state(tokens: Sequence[int]) -> int:
    """A number that says which tokens they are."""
    return int(zlib.crc32(bytes(tokens)) % 1_000_003)


CONTEXT = 40
texts = st.lists(st.integers(0, 1), min_size=1, max_size=30)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 3), texts, st.integers(0, 9)),
        st.tuples(st.just("branch"), st.integers(0, 9), st.booleans(), st.integers(0, 9)),
        st.tuples(st.just("end"), st.integers(0, 9)),
    ),
    min_size=1,
    max_size=25,
)
BEGINNINGS = [[0] * 13, [1, 0] * 10, [0] * 13 + [1] * 9, [1]]


def branch(pool: SlotPool, model: Rows, slot: Slot, wins: bool, tokens: int) -> None:
    """A round of a text that has a branch: the last token in both slots, others after it in each."""
    if len(slot.tokens) + 1 + tokens > CONTEXT:
        return
    other = pool.branch(slot)
    assert other.tokens == slot.tokens
    assert other.number != slot.number
    before = len(slot.tokens) + 1
    for which, token in ((slot, 7), (other, 8)):
        model.feed(which, [9, *[token] * tokens])
    if wins:
        slot.exchange(other)
        slot.tokens, other.tokens = other.tokens, slot.tokens
    del other.tokens[before:]
    pool.give_back(other)


def run(steps: Sequence[Any], model: Rows, kept_rows: int) -> SlotPool:
    """Texts that begin alike take slots, go on and end."""
    pool = SlotPool(model, kept_rows)  # type: ignore[arg-type]
    at_work: list[tuple[Slot, list[int]]] = []
    for kind, *step in steps:
        if kind == "take" and pool.free:
            ids = [*BEGINNINGS[step[0]], *step[1]][:CONTEXT]
            slot = pool.take(ids)
            pool.share(slot, ids)
            model.check(pool)
            model.feed(slot, ids[len(slot.tokens) :])
            model.feed(slot, list(range(2, 2 + step[2]))[: CONTEXT - len(slot.tokens)])
            at_work.append((slot, ids))
        elif kind == "branch" and at_work and pool.free_for_branches:
            slot = at_work[step[0] % len(at_work)][0]
            branch(pool, model, slot, step[1], step[2])
        elif kind == "end" and at_work:
            pool.give_back(at_work.pop(step[0] % len(at_work))[0])
        model.check(pool)
        assert model.cache.block_rows == CONTEXT or pool.kept_rows <= 3 * CONTEXT + kept_rows
    return pool


@settings(max_examples=150, deadline=None)
@given(steps=steps, mapped=st.booleans(), kept_rows=st.sampled_from([0, 8, CONTEXT]))
def test_every_slot_has_the_rows_of_its_text(steps: Sequence[Any], mapped: bool, kept_rows: int) -> None:
    run(steps, Rows(3, mapped), kept_rows)


def test_without_copies_before_writes_rows_would_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    steps = [("take", 0, [1, 1, 1], 0), ("take", 0, [0, 0, 1], 5), ("end", 1), ("take", 3, [1, 1], 9)]
    run(steps, Rows(2), 0)
    monkeypatch.setattr(CacheBlocks, "_make_own", lambda *arguments: None)
    with pytest.raises(AssertionError):
        run(steps, Rows(2), 0)


@pytest.mark.parametrize("mapped", [False, True])
def test_thousands_of_branches_leave_all_slots_and_blocks(mapped: bool) -> None:
    """Two texts at a time that branch in every round, win and lose; others come when they are full."""
    rng, model = random.Random(3), Rows(4, mapped)
    pool = SlotPool(model, kept_rows=8)  # type: ignore[arg-type]
    at_work, numbers = [pool.take([0]), pool.take([1])], set[tuple[int, int]]()
    for number in range(3000):
        for i, slot in enumerate(at_work):
            if len(slot.tokens) + 6 > CONTEXT:
                pool.give_back(slot)
                ids = [rng.randrange(2)] * rng.randrange(1, 20)
                at_work[i] = slot = pool.take(ids)
                pool.share(slot, ids)
                model.feed(slot, ids[len(slot.tokens) :])
            branch(pool, model, slot, rng.random() < 0.3, rng.randrange(1, 4))
            numbers.add((i, slot.number))
        assert pool.free == 2
        if number % 100 == 0:
            model.check(pool)
    assert len(numbers) == 2 * 4  # each text was in every slot
    for slot in at_work:
        pool.give_back(slot)
    assert {slot.number for slot in pool.every} == {0, 1, 2, 3}
    assert pool.free == 4


@pytest.mark.parametrize("source", [None, 2])
def test_a_branch_without_the_rows_of_its_text_is_found(monkeypatch: pytest.MonkeyPatch, source: int | None) -> None:
    """The negative control: no rows, or those of another slot."""
    model, follow = Rows(3), CacheBlocks.follow
    pool = SlotPool(model)  # type: ignore[arg-type]
    slot = pool.take([1, 2, 3])
    model.feed(slot, range(1, 10))
    branch(pool, model, slot, True, 2)
    model.check(pool)

    def wrong(self: CacheBlocks, right: int, *rows: int) -> None:
        if source is not None:
            follow(self, source, *rows)

    monkeypatch.setattr(CacheBlocks, "follow", wrong)
    branch(pool, model, slot, True, 2)
    with pytest.raises(AssertionError):
        model.check(pool)


def test_a_branch_costs_no_text_more_than_the_next_request_would() -> None:
    """All slots hold a text; the branch of one takes the shortest, and the request after it that of the branch."""
    model = Rows(4)
    pool = SlotPool(model)  # type: ignore[arg-type]
    for number, length in enumerate((9, 5, 12, 7)):
        model.feed(pool.every[number], [number] * length)
    slot = pool.take([0] * 10)
    branch(pool, model, slot, False, 2)
    branch(pool, model, slot, True, 2)
    texts = {tuple(other.tokens[:5]) for other in pool.every}
    assert texts == {(number,) * 5 for number in (0, 2, 3)}
    assert pool.take([8, 8]).tokens == []
    assert {tuple(other.tokens[:5]) for other in pool.every if other.tokens} == texts
    model.check(pool)


def test_a_beginning_that_eight_have_is_read_once() -> None:
    model = Rows(8)
    pool = SlotPool(model)  # type: ignore[arg-type]
    shared, taken = list(range(50, 50 + 21)), []
    for number in range(8):
        ids = [*shared, number, number]
        slot = pool.take(ids)
        assert pool.share(slot, ids) == (21 if number else 0)
        model.feed(slot, ids[len(slot.tokens) :])
        taken.append(slot)
    model.check(pool)
    assert model.read == 21 + 8 * 2  # not 8 * 23
    assert pool.kept_rows == 8 * 23 - 7 * 20  # five blocks of four rows, which all have; the next row is a copy
    assert pool.shared_rows == 7 * 21
    for slot in taken:
        pool.give_back(slot)
    other = pool.take([9, *shared])
    assert pool.share(other, [9, *shared]) == 0


def test_texts_without_a_slot_are_kept_within_the_bound() -> None:
    model = Rows(1)
    pool = SlotPool(model, kept_rows=16)  # type: ignore[arg-type]

    def ask(first: int) -> int:
        ids = [*range(first, first + 9), 1]
        slot = pool.take(ids)
        taken_over = pool.share(slot, ids)
        model.feed(slot, ids[len(slot.tokens) :])
        model.check(pool)
        pool.give_back(slot)
        return taken_over

    assert [ask(first) for first in (10, 30, 10, 30)] == [0, 0, 8, 8]  # two blocks of four rows, one text at a time
    assert [ask(first) for first in (50, 30, 10)] == [0, 8, 0]  # that of 10 made room
    assert SlotPool(model).kept_rows == 0  # type: ignore[arg-type]
