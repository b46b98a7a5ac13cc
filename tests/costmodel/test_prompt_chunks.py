from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel.prompt_chunks import next_chunk


@given(st.integers(1, 2000), st.sampled_from([(32,), (32, 64), (32, 128), (8, 24), (1, 7)]))
def test_no_more_rows_are_computed_than_with_narrow_chunks(tokens: int, widths: tuple[int, ...]) -> None:
    left, rows, chunks = tokens, 0, []
    while left > 0:
        chunks.append(next_chunk(left, widths))
        left, rows = left - chunks[-1], rows + chunks[-1]
    assert rows - tokens < widths[0]
    assert chunks == sorted(chunks, reverse=True)
    assert chunks.count(widths[-1]) >= tokens // widths[-1]


@pytest.mark.parametrize(("left", "width"), [(1, 32), (32, 32), (96, 32), (97, 128), (128, 128), (500, 128)])
def test_the_widest_that_is_nearly_full(left: int, width: int) -> None:
    assert next_chunk(left, (32, 128)) == width
