"""The pool against a search of the whole text, and its bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sd.runtime.decode.drafters.ngram_pool import Match, NgramPool


def pool_of(*texts: Sequence[int], size: int = 1 << 10) -> NgramPool:
    pool = NgramPool(size)
    for text in texts:
        pool.begin()
        for token in text:
            pool.add(token)
    return pool


def by_comparison(texts: Sequence[Sequence[int]]) -> tuple[int, list[int]]:
    """Tokens at the end of the last text that stand anywhere before, up to 16, and what follows them there."""
    joined = [token for text in texts for token in (-1, *text)]
    for n in range(16, 1, -1):
        tail = joined[-n:]
        if len(tail) == n and -1 not in tail:
            places = [i + n for i in range(len(joined) - n) if joined[i : i + n] == tail]
            if places:
                return n, [joined[place] for place in places if joined[place] != -1]
    return 0, []


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(st.lists(st.integers(0, 3), max_size=14), min_size=1, max_size=3))
def test_the_longest_match_is_found(texts: list[list[int]]) -> None:
    found, (length, following) = pool_of(*texts).search(16), by_comparison(texts)
    counts = Counter(following).most_common(1)
    agreed = bool(counts) and 2 * counts[0][1] >= len(following)
    assert (found is not None) == agreed
    if found is not None:
        assert found.length == length
        assert Counter(following)[found.tokens[0]] == counts[0][1]
        assert 1 <= len(found.tokens) <= 2 * length


def test_what_followed_is_drafted_and_a_longer_match_drafts_more() -> None:
    assert pool_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]).search(16) == Match(2, [3, 4, 5, 6])
    assert pool_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]).search(16) == Match(3, [4, 5, 6, 7, 8, 9])
    assert pool_of([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]).search(2) == Match(3, [4, 5])
    assert pool_of([1, 2, 3]).search(16) is None


def test_the_longest_match_wins_over_the_most_recent() -> None:
    assert pool_of([7, 1, 2, 3, 9, 1, 2, 4, 7, 1, 2]).search(1) == Match(3, [3])


def test_of_equal_matches_the_most_frequent_continuation_is_drafted_then_the_most_recent() -> None:
    assert pool_of([1, 2, 3, 0, 1, 2, 3, 5, 1, 2, 4, 6, 1, 2]).search(1) == Match(2, [3])
    assert pool_of([1, 2, 3, 0, 5, 1, 2, 4, 6, 1, 2]).search(1) == Match(2, [4])


def test_a_draft_ends_where_the_places_disagree() -> None:
    text = [1, 2, 3, 4, 0, 1, 2, 3, 5, 0, 1, 2, 3, 6, 0, 7, 1, 2]
    assert pool_of(text).search(16) == Match(2, [3])


def test_a_period_is_continued_beyond_the_end() -> None:
    assert pool_of([1, 2, 1, 2]).search(16) == Match(2, [1, 2, 1, 2])


def test_earlier_texts_are_searched_and_no_match_crosses_a_border() -> None:
    assert pool_of([1, 2, 3, 4], [1, 2]).search(16) == Match(2, [3, 4])
    assert pool_of([5, 1], [2, 3], [1, 2]).search(16) is None
    assert pool_of([1, 2, 3], [4], [1, 2, 3]).search(16) is None


def otherwise(text: Sequence[int], most: int = 16) -> list[int]:
    pool = pool_of(text)
    match = pool.search(most)
    assert match is not None
    return pool.otherwise(match, most)


def test_places_that_disagree_have_a_continuation_of_their_own() -> None:
    assert otherwise([1, 2, 3, 0, 5, 1, 2, 4, 6, 1, 2]) == [3, 0, 5, 1]  # the older of two
    assert otherwise([1, 2, 3, 0, 5, 1, 2, 4, 6, 1, 2], most=1) == [3]
    assert otherwise([1, 2, 3, 0, 1, 2, 3, 5, 1, 2, 4, 6, 1, 2]) == [4, 6, 1, 2]
    assert otherwise([7, 1, 2, 3, 9, 1, 2, 4, 7, 1, 2]) == [4, 7, 1, 2]  # of a shorter match
    assert otherwise([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]) == []  # nothing else was seen
    assert otherwise([1, 2, 3, 0, 1, 2, 3, 5, 1, 2]) == []  # all agree


@settings(max_examples=200, deadline=None)
@given(text=st.lists(st.integers(0, 3), min_size=3, max_size=30))
def test_what_follows_otherwise_stood_after_a_match(text: list[int]) -> None:
    pool = pool_of(text)
    match = pool.search(16)
    other = [] if match is None else pool.otherwise(match, 16)
    if match is not None and other:
        assert other[0] != match.tokens[0]
        tail = text[-2:]
        assert any([*tail, other[0]] == text[i : i + 3] for i in range(len(text) - 2))


def test_what_left_the_ring_is_forgotten() -> None:
    filler = list(range(100, 100 + 60))
    assert pool_of([1, 2, 3, *filler, 1, 2], size=128).search(1) == Match(2, [3])
    assert pool_of([1, 2, 3, *filler, 1, 2], size=64).search(1) is None


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.integers(0, 2), max_size=300))
def test_a_small_ring_finds_only_what_it_holds(text: list[int]) -> None:
    pool = pool_of(size=16)
    for end, token in enumerate(text, 1):
        pool.add(token)
        found = pool.search(16)
        if found is not None:
            held = text[max(0, end - 16) : end]
            tail = held[-found.length :]
            assert any(held[i : i + found.length] == tail for i in range(len(held) - found.length))


def test_its_memory_does_not_grow() -> None:
    pool = NgramPool(1 << 8)

    def held() -> int:
        return sum(value.buffer_info()[1] for value in vars(pool).values() if hasattr(value, "buffer_info"))

    before = held()
    for token in range(5000):
        pool.add(token % 97)
    assert held() == before == 3 << 8


def test_one_place_in_many_is_among_the_most_recent_that_are_looked_at() -> None:
    """A search is bounded: of many equal pairs only the last sixteen are compared."""
    text = [9, 1, 2, 3, *[0, 1, 2, 4] * 15, 9, 1, 2]
    assert pool_of(text).search(1) == Match(3, [3])
    far = [9, 1, 2, 3, *[0, 1, 2, 4] * 40, 9, 1, 2]
    assert pool_of(far).search(1) == Match(2, [4])


@pytest.mark.parametrize("count", [1, 2])
def test_a_short_text_has_no_match(count: int) -> None:
    assert pool_of([1] * count).search(4) is None
