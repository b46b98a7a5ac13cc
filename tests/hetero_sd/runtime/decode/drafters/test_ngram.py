"""N-gram drafting changes no text, alone and beside a model, and gains where text repeats."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel.schema.prediction import LivePrediction
from hetero_sd.runtime.decode.drafters import Drafter
from hetero_sd.runtime.decode.drafters.either import EitherDrafter
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.drafters.ngram import NgramDrafter, source
from hetero_sd.runtime.decode.drafters.ngram_pool import NgramPool
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.live_gamma import LiveGamma
from hetero_sd.runtime.decode.policy import FixedGamma, GammaPolicy
from hetero_sd.runtime.decode.sampling import Rng, Sampling
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Stopwatch, Trace


def drafter_of(kind: str, target: Any, draft: Any, request: Request, pool: NgramPool) -> Drafter:
    ngram = NgramDrafter(pool, target.vocab, request.sampling)
    return ngram if kind == "ngram" else EitherDrafter(ngram, ModelDrafter(draft, target.vocab, request.sampling))


def live() -> LiveGamma:
    return LiveGamma(LivePrediction(0.7, 1e-7, {1: 1e-5, 2: 1e-5, 4: 1e-5, 8: 1e-5}, 1e-7, 1e-7, 32), [0, 1, 3, 7])


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["ngram", "model+ngram"]),
    gamma=st.sampled_from([0, 1, 3, 7, None]),
    prompt=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    states=st.integers(1, 11),
    context=st.integers(14, 60),
)
def test_greedy_is_the_target_alone(pair, seed, kind, gamma, prompt, states, context) -> None:
    """Two texts in a row, so that the second finds the first in the pool; a gamma of None is the live policy."""
    pool, request = NgramPool(1 << 8), Request(40)
    policy: GammaPolicy = live() if gamma is None else FixedGamma(gamma)
    for _ in range(2):
        target, draft = pair(seed, 0.5, context=context, states=states)
        alone = list(generate(target, prompt, request, Trace()))
        target, draft = pair(seed, 0.5, context=context, states=states)
        drafter, trace = drafter_of(kind, target, draft, request, pool), Trace()
        assert list(speculate(target, drafter, prompt, request, policy, trace)) == alone


def rounds_of(pair: Any, kind: str, repeated: bool) -> list[Any]:
    pool, rounds = NgramPool(1 << 8), []
    for turn in range(2):
        target, draft = pair(5 if repeated else 5 + turn, 0.5, states=97, vocab=64, context=256)
        request, trace = Request(60), Trace()
        list(
            speculate(target, drafter_of(kind, target, draft, request, pool), [1, 2, 3], request, FixedGamma(7), trace)
        )
        rounds = trace.rounds
    return rounds


@pytest.mark.parametrize("kind", ["ngram", "model+ngram"])
def test_a_text_that_was_generated_before_takes_few_rounds(pair: Any, kind: str) -> None:
    again, other = rounds_of(pair, kind, True), rounds_of(pair, kind, False)
    by_ngram = [r for r in again if r.source.startswith("ngram")]
    assert len(by_ngram) >= 5
    assert sum(r.accepted for r in by_ngram) >= 0.9 * sum(r.drafted for r in by_ngram)
    assert len(again) <= 20
    accepted = sum(r.accepted for r in other if r.source.startswith("ngram"))
    assert accepted < 0.5 * sum(r.accepted for r in by_ngram)  # the negative control: another text


def test_a_round_without_a_match_is_a_plain_step_or_the_models(pair: Any) -> None:
    assert any(r.drafted == 0 and r.source == "" for r in rounds_of(pair, "ngram", False))
    both = rounds_of(pair, "model+ngram", True)
    assert {r.source.split("-")[0] for r in both if r.drafted} == {"ngram", "model"}


def test_a_longer_match_is_another_source() -> None:
    assert [source(n) for n in (2, 3, 4, 5, 16)] == ["ngram-2", "ngram-3", "ngram-3", "ngram-5", "ngram-5"]


def test_the_model_reads_what_ngrams_drafted(pair: Any) -> None:
    """Its cache follows: it drafts what it would draft from scratch, also after rounds that were not its own."""
    pool, checked = NgramPool(1 << 8), 0
    for seed in range(12):
        target, draft = pair(seed, 0.7, states=7, vocab=5)
        fresh = type(draft)(draft.table, draft.context)
        request, trace = Request(40), Trace()
        model = ModelDrafter(draft, target.vocab, request.sampling)
        honest = model.propose

        def checking(tokens, name, gamma, watch, rng, go_on=None, honest=honest, fresh=fresh):
            nonlocal checked
            drafted = honest(tokens, name, gamma, watch, rng, go_on)
            text = list(tokens)
            for token in drafted.tokens:
                assert token == fresh.extend(text, 0)
                text.append(token)
                checked += 1
            return drafted

        model.propose = checking  # type: ignore[method-assign]
        drafter = EitherDrafter(NgramDrafter(pool, target.vocab, request.sampling), model)
        list(speculate(target, drafter, [1, 2], request, FixedGamma(3), trace))
        assert any(r.source.startswith("ngram") for r in trace.rounds)
    assert checked > 50


def test_drafts_of_a_point_distribution_when_sampling(pair: Any) -> None:
    target, _ = pair(3)
    drafter = NgramDrafter(NgramPool(1 << 8), target.vocab, Sampling(temperature=1.0))
    text, watch = [1, 2, 3, 1, 2], Stopwatch()
    (offer,) = drafter.offers(text, watch)
    draft = drafter.propose(text, offer.source, 2, watch, Rng(0))
    assert draft.tokens == [3, 1]
    assert [int(np.argmax(q)) for q in draft.q] == [3, 1]
    assert all(q.sum() == q.max() == 1.0 for q in draft.q)


def test_a_live_policy_learns_which_matches_pay(pair: Any) -> None:
    """By a clock on which each interval takes as long: what this machine has to do decides nothing."""
    ticks = itertools.count()
    policy, pool, request = live(), NgramPool(1 << 10), Request(200)
    trace = Trace()
    for _ in range(3):
        target, draft = pair(5, 0.5, states=97, vocab=64, context=256)
        trace = Trace(clock=lambda: 1e-5 * next(ticks))
        list(speculate(target, drafter_of("ngram", target, draft, request, pool), [1, 2, 3], request, policy, trace))
    assert sum(r.accepted for r in trace.rounds) > 90
    assert any(s.source == "ngram-5" and s.after > 0 for s in trace.switches) or trace.rounds[5].source == "ngram-5"
