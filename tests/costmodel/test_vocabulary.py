"""Heads that differ by padding belong to one vocabulary, others do not."""

from __future__ import annotations

import pytest

from costmodel.vocabulary import one_vocabulary, only_padding


@pytest.mark.parametrize(
    ("target", "draft", "ids"),
    [
        (32064, 32000, 31990),
        (152064, 151936, 151665),  # Qwen2.5 7B and 0.5B
        (152064, 151936, None),
        (128256, 128256, 128256),
        (102400, 102400, 100015),  # equal heads, however much is padding
    ],
)
def test_padded_alike(target: int, draft: int, ids: int | None) -> None:
    assert one_vocabulary(target, draft, ids)
    assert one_vocabulary(draft, target, ids)


@pytest.mark.parametrize(
    ("target", "draft", "ids"),
    [
        (128256, 32000, None),
        (128256, 32000, 31990),
        (32064, 31980, 31990),  # the drafter lacks ids of the tokenizer
        (50304, 32000, 31000),
    ],
)
def test_other_vocabularies(target: int, draft: int, ids: int | None) -> None:
    assert not one_vocabulary(target, draft, ids)
    assert not one_vocabulary(draft, target, ids)


def test_borders_of_padding() -> None:
    assert only_padding(1000, 1000)
    assert only_padding(1256, 1000)
    assert not only_padding(1257, 1000)
    assert not only_padding(999, 1000)
    assert only_padding(101_000, 100_000)
    assert not only_padding(101_001, 100_000)
