"""A drafter in the target's cache: the text stays the target's own, and rows that it overwrote are not counted on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sd.runtime.decode.drafters.early_exit import EarlyExitDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.model.kept_prefix import KeptPrefix, kept_prefixes
from hetero_sd.runtime.model.protocol import Models
from hetero_sd.runtime.model.shared_rows import SharedRows, with_shared_rows


def sharing(pair: Any, seed: int) -> Models:
    """Toy models with one list of rows."""
    target, draft = pair(seed)
    draft.rows = target.rows
    return Models(target, SharedRows(draft))


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=5),
    gamma=st.integers(1, 4),
    seed=st.integers(0, 20),
)
def test_texts_are_the_targets_own(pair: Any, texts: list[list[int]], gamma: int, seed: int) -> None:
    kept, request = kept_prefixes(sharing(pair, seed)), Request(6)
    assert kept.draft is not None
    for prompt in texts:
        trace = Trace()
        drafter = EarlyExitDrafter(kept.draft, kept.target.vocab, request.sampling)
        found = list(speculate(kept.target, drafter, prompt, request, FixedGamma(gamma), trace))
        assert found == list(generate(pair(seed)[0], prompt, request, Trace()))
        assert sum(r.read for r in trace.rounds) + trace.read_first == 0


def test_rows_that_a_draft_overwrote_are_forgotten(pair: Any) -> None:
    models, text = sharing(pair, 3), [1, 2, 3, 4]
    kept = kept_prefixes(models)
    assert kept.draft is not None
    kept.target.submit(text, 0).result()
    assert kept.target.held(text) == 4
    kept.draft.submit([5, 5], 2).result()  # and nothing verifies it: the answer was interrupted
    assert kept.target.held(text) == 2
    unaware = KeptPrefix(models.target)
    unaware.submit(text, 0).result()
    assert isinstance(models.draft, SharedRows)
    models.draft.model.submit([5, 5], 2).result()
    assert unaware.held(text) == 4
    assert models.target.rows == [1, 2, 5, 5]  # type: ignore[attr-defined]


@pytest.mark.parametrize("shares", [None, False, True])
def test_only_an_early_exit_shares(pair: Any, shares: bool | None) -> None:
    models = Models(*pair(3))
    assert models.draft is not None
    if shares is not None:
        models.draft.share_rows = lambda whole: shares and whole is models.target  # type: ignore[attr-defined]
    assert isinstance(with_shared_rows(models, models).draft, SharedRows) == bool(shares)
    assert with_shared_rows(Models(models.target), Models(models.target)).draft is None
