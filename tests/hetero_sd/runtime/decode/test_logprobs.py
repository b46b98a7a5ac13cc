"""Probabilities of tokens: the softmax of the target's logits, in every way to decode."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.logprobs import Logprobs, TokenLogprob, entropy_bits
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.decode.sampling import Sampling
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Trace
from hetero_sd.runtime.session import Session
from targets.errors import UserError


def test_the_most_probable_tokens_of_a_row() -> None:
    rows = np.log(np.array([[0.1, 0.2, 0.2, 0.5, 0.0]]) + 1e-300).astype(np.float32)
    found = Logprobs(3)
    found.add(rows, [0])
    [one] = found.of
    assert one.token == 0
    assert one.logprob == pytest.approx(math.log(0.1), abs=1e-6)
    assert [token for token, _ in one.top] == [3, 1, 2]  # of equal ones the lower id comes first
    assert [math.exp(logprob) for _, logprob in one.top] == pytest.approx([0.5, 0.2, 0.2], abs=1e-6)
    for top, count in ((0, 0), (1, 1), (20, 5)):
        more = Logprobs(top)
        more.add(rows, [3])
        assert len(more.of[0].top) == count


@pytest.mark.parametrize("temperature", [0.0, 1.4])
@pytest.mark.parametrize("drafts", [False, True])
def test_they_are_those_of_the_whole_text(pair: Callable[..., Any], temperature: float, drafts: bool) -> None:
    target, draft = pair(2, noise=0.5)
    request, trace = Request(30, sampling=Sampling(temperature, seed=5)), Trace(logprobs=Logprobs(2))
    if drafts:
        drafter = ModelDrafter(draft, target.vocab, request.sampling, [1, 2])
        ids = list(speculate(target, drafter, [1, 2], request, FixedGamma(3), trace))
        assert sum(r.accepted for r in trace.rounds) > 0
    else:
        ids = list(generate(target, [1, 2], request, trace))
    assert trace.logprobs is not None
    found = trace.logprobs.of[: len(ids)]
    assert [one.token for one in found] == ids
    logits = pair(2)[0].forward([1, 2, *ids], 0)[1:-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose([one.logprob for one in found], expected[range(len(ids)), ids], atol=1e-9)
    np.testing.assert_allclose([[p for _, p in one.top] for one in found], -np.sort(-expected, 1)[:, :2], atol=1e-9)
    wrong = [one.logprob for one in found[1:]]
    assert not np.allclose(wrong, expected[range(len(ids) - 1), ids[:-1]], atol=1e-3)  # the negative control


def test_an_answer_has_them_where_they_are_asked_for(letters: Callable[..., Session]) -> None:
    plain = letters(drafts=True).generate("hello", max_new_tokens=9)
    asked = letters(drafts=True).generate("hello", max_new_tokens=9, logprobs=4)
    assert plain.read() == asked.read()
    assert plain.logprobs == []
    assert [one.token for one in asked.logprobs] == asked.token_ids
    assert all(one.top[0] == (one.token, one.logprob) and len(one.top) == 4 for one in asked.logprobs)
    with pytest.raises(UserError, match="logprobs must be 0 to 20"):
        letters().generate("hello", logprobs=21)


def test_the_mean_entropy_in_bits() -> None:
    def row(*p: float) -> TokenLogprob:
        return TokenLogprob(0, 0.0, tuple((i, math.log(x)) for i, x in enumerate(p)))

    assert entropy_bits([]) == 0.0
    assert entropy_bits([row(1.0)]) == 0.0
    assert entropy_bits([row(0.25, 0.25, 0.25, 0.25), row(0.5, 0.5)]) == pytest.approx(1.5)
    assert entropy_bits([row(0.1, 0.1)]) == pytest.approx(1.0)  # scaled to a sum of 1
    assert entropy_bits([row(0.9, 0.1)]) == pytest.approx(-0.9 * math.log2(0.9) - 0.1 * math.log2(0.1))
    assert entropy_bits([TokenLogprob(0, 0.0, ((0, 0.0), (1, -2000.0)))]) == 0.0
