"""Rows of the cache that a text shares with the one before are not computed again, and the text is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.decode.sampling import Sampling
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.manifest import Bundle
from hetero_sd.runtime.model.kept_prefix import KeptPrefix, kept_prefixes
from hetero_sd.runtime.model.model import load_models
from hetero_sd.runtime.model.protocol import LOGITS, Models, NotFiniteError
from hetero_sd.runtime.model.shared_rows import SharedRows
from hetero_sd.runtime.model.within_vocabulary import within_vocabulary


def answer(models: Models, prompt: list[int], request: Request, gamma: int) -> tuple[list[int], Trace]:
    trace = Trace()
    if not gamma:
        return list(generate(models.target, prompt, request, trace)), trace
    assert models.draft is not None
    drafter = ModelDrafter(models.draft, models.target.vocab, request.sampling, prompt)
    return list(speculate(models.target, drafter, prompt, request, FixedGamma(gamma), trace)), trace


def read(model: Any) -> int:
    """Tokens that a toy model was fed since the last call."""
    count = sum(n for _, n in model.fed)
    model.fed.clear()
    return count


@pytest.mark.parametrize("gamma", [0, 3])
def test_a_turn_reads_only_the_new_tokens(pair: Any, gamma: int) -> None:
    target, draft = pair(5, noise=0.0)
    kept = kept_prefixes(Models(target, draft))
    request = Request(8)
    first, trace = answer(kept, [1, 2, 3, 4, 5], request, gamma)
    assert trace.kept_tokens == 0
    read(target), read(draft)
    second = [1, 2, 3, 4, 5, *first, 2, 2, 4]
    found, trace = answer(kept, second, Request(1), gamma)
    assert trace.prompt_tokens == 16
    # the last token of an answer was not fed by plain steps; a round fed what it drafted
    assert trace.kept_tokens == len(second) - read(target)
    assert trace.kept_tokens == 12
    assert found == answer(Models(*pair(5, noise=0.0)), second, Request(1), gamma)[0]
    answer(kept, [*second, 1, 1], Request(3), gamma)
    assert read(target) <= 2 + 1 + 2 + gamma  # two new ones, the answer's, two rounds
    if gamma:
        assert read(draft) <= 7 + 2 + gamma + 1  # what it has not seen of the two turns, and its drafts


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=6),
    gamma=st.integers(0, 3),
    seed=st.integers(0, 20),
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_texts_that_share_beginnings_are_those_of_fresh_models(
    pair: Any, texts: list[list[int]], gamma: int, seed: int, temperature: float
) -> None:
    kept = kept_prefixes(Models(*pair(seed)))
    for i, prompt in enumerate(texts):
        request = Request(6, sampling=Sampling(temperature, seed=i))
        assert answer(kept, prompt, request, gamma)[0] == answer(Models(*pair(seed)), prompt, request, gamma)[0]


def test_a_cache_that_holds_something_else_would_show(pair: Any) -> None:
    """The negative control: the toy models do read their rows."""
    target, _ = pair(5)
    kept = KeptPrefix(target)
    wanted, _ = answer(Models(kept), [1, 2, 3, 4, 5], Request(8), 0)
    target.rows[1] = 5
    assert answer(Models(kept), [1, 2, 3, 4, 5], Request(8), 0)[0] != wanted


def test_rows_of_a_step_that_fails_are_forgotten(pair: Any) -> None:
    target, _ = pair(5)
    kept = KeptPrefix(target)
    kept.argmax([1, 2, 3], 0)
    table, target.table = target.table, np.full_like(target.table, np.nan)
    with pytest.raises(NotFiniteError):
        kept.argmax([4, 5], 3)
    target.table = table
    assert kept.held([1, 2, 3, 4, 5]) == 3
    kept.argmax([4], 2)
    assert [kept.held(ids) for ids in ([1, 2, 4, 4], [1, 2, 3], [2], [])] == [3, 2, 0, 0]
    kept.argmax([4], 3)
    target.rows += [0] * 9
    kept.argmax([1], 9)  # after a gap: rows that this wrapper has not seen
    assert kept.held([1, 2, 4, 4, 0, 0, 0, 0, 0, 1]) == 4


def test_a_compiled_model_computes_the_same_bits_from_any_row_on(tiny_pair: Path) -> None:
    """Prompts go through the wide entry point, answers through narrow ones: a row has the same bits from each."""
    target = load_models(Bundle(tiny_pair)).target
    ids = [7, 3, 11, 5, 2, 9, 8, 1, 4, 6, 13, 12, 10, 15, 14, 17, 16, 19, 18, 21, 20, 23, 22, 25, 24, 27, 26, 29] * 2
    row = target.submit(ids, 0, (LOGITS,), last=True).result()[LOGITS].copy()
    for start in (1, 2, 5, 17, 32, 33, 54, 55):
        target.submit([0] * 56, 0, last=True).result()  # nothing is left of the row that is compared with
        for pos in range(start):  # as an answer's tokens are fed
            target.extend(ids[pos : pos + 1], pos)
        found = target.submit(ids[start:], start, (LOGITS,), last=True).result()[LOGITS]
        assert np.array_equal(found, row), start
    target.extend([6], 3)  # the negative control: one row of another token
    assert not np.array_equal(target.submit(ids[4:], 4, (LOGITS,), last=True).result()[LOGITS], row)


@pytest.mark.parametrize("gamma", [0, 1])
def test_a_conversation_on_a_compiled_pair(tiny_pair: Path, gamma: int) -> None:
    loaded = load_models(Bundle(tiny_pair))
    kept, text = kept_prefixes(loaded), [7, 3, 11, 5, 2, 9, 8, 1]
    for turn in range(3):
        found, trace = answer(kept, text, Request(5), gamma)
        assert (trace.kept_tokens > 0) == (turn > 0)
        assert len(text) - trace.kept_tokens <= 8
        text += [*found, 4, 4 + turn]
    kept_text, text = text, [7, 3, 11, 5, 2, 9, 8, 1]
    for turn in range(3):
        text += [*answer(loaded, text, Request(5), gamma)[0], 4, 4 + turn]
    assert text == kept_text


def test_a_wrapped_model_says_where_it_runs(pair: Any) -> None:
    models = Models(*pair(3))
    models.target.processor = "gpu"  # type: ignore[attr-defined]
    assert models.draft is not None
    within = within_vocabulary(Models(models.target, SharedRows(models.target)), 4)
    kept = kept_prefixes(models)
    for model in (KeptPrefix(within.target), within.draft, kept.target, SharedRows(models.target)):
        assert model.processor == "gpu"  # type: ignore[union-attr]
    assert kept.draft.processor == "cpu"  # type: ignore[union-attr]
