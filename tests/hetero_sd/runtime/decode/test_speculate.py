"""Speculation gives what the target alone gives, and drafts what the drafter would draft from scratch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.policy import PLAIN, Choice, FixedGamma
from hetero_sd.runtime.decode.sampling import Sampling
from hetero_sd.runtime.decode.speculate import speculate
from hetero_sd.runtime.decode.trace import Round, Trace
from hetero_sd.runtime.model.protocol import Model


class RandomGamma:
    """Another gamma in every round, 0 included."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.seen: list[Round] = []

    def begin(self, prompt_tokens: int, max_new_tokens: int) -> None:
        pass

    def read_first(self, offers, prefill_s) -> int:
        return int(self._rng.integers(0, 6))

    def rests(self) -> bool:
        return not self._rng.integers(0, 8)

    def choose(self, offers) -> Choice:
        """Also reads pieces, before plain steps and before drafts that need all of the text."""
        gamma = int(self._rng.integers(0, 6))
        if not offers:
            return PLAIN
        read = offers[0].unread if gamma else int(self._rng.integers(0, 3))
        return Choice(offers[0].source, gamma, read)

    def observe(self, finished: Round) -> None:
        self.seen.append(finished)


class CheckingTarget(Model):
    """Compares every verified draft with what a drafter without a cache would have drafted."""

    def __init__(self, target, draft, prompt) -> None:
        self._target, self._draft = target, type(draft)(draft.table, draft.context)
        self.vocab, self.context, self.name = target.vocab, target.context, target.name
        self.checked = 0

    def submit(self, ids, pos, outputs=("choice",), last=False):
        if last:
            return self._target.submit(ids, pos, outputs, last)
        text = self._target.rows[:pos] + list(ids[:1])
        for token in ids[1:]:
            assert token == self._draft.extend(text, 0)
            text.append(token)
            self.checked += 1
        return self._target.submit(ids, pos, outputs)


def run(target, draft, prompt, request, policy=None):
    trace = Trace()
    if policy is None:
        ids = list(generate(target, prompt, request, trace))
    else:
        ids = list(
            speculate(target, ModelDrafter(draft, target.vocab, request.sampling), prompt, request, policy, trace)
        )
    assert ids == trace.token_ids
    return trace


prompts = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    gamma=st.integers(0, 7),
    prompt=prompts,
    new=st.integers(1, 40),
    context=st.integers(12, 50),
    draft_context=st.integers(1, 50),
    draft_vocab=st.integers(2, 9),
    eos=st.sets(st.integers(0, 5), max_size=1),
)
def test_greedy_is_the_target_alone(pair, seed, noise, gamma, prompt, new, context, draft_context, draft_vocab, eos):
    target, draft = pair(seed, noise, context=context, draft_vocab=draft_vocab, draft_context=draft_context)
    request = Request(new, frozenset(eos))
    alone = run(target, None, prompt, request)
    target, draft = pair(seed, noise, context=context, draft_vocab=draft_vocab, draft_context=draft_context)
    both = run(target, draft, prompt, request, FixedGamma(gamma))
    assert both.token_ids == alone.token_ids
    assert both.finish_reason == alone.finish_reason in {"eos", "length", "context"}
    assert sum(r.accepted + 1 for r in both.rounds) >= len(both.token_ids) - 1
    assert all(r.accepted <= r.drafted <= gamma for r in both.rounds)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), noise=st.sampled_from([0.0, 0.5, 2.0]), prompt=prompts)
def test_drafter_drafts_as_from_scratch(pair, seed, noise, prompt):
    target, draft = pair(seed, noise)
    checking = CheckingTarget(target, draft, prompt)
    policy = RandomGamma(seed)
    trace = run(checking, draft, prompt, Request(40), policy)
    assert policy.seen == trace.rounds
    assert checking.checked == sum(r.drafted for r in trace.rounds) > 0


def test_drafter_that_forgets_to_roll_back_is_caught(pair, monkeypatch):
    monkeypatch.setattr(ModelDrafter, "keep", lambda self, length: None)
    target, draft = pair(3, 2.0)
    with pytest.raises(AssertionError):
        run(CheckingTarget(target, draft, [1]), draft, [1], Request(40), FixedGamma(3))


def test_stale_row_of_the_target_is_caught(pair):
    target, draft = pair(3, 2.0)
    alone = run(*pair(3, 2.0), [1], Request(40))
    honest = target.submit
    target.submit = lambda ids, pos, *more, **last: honest(ids, pos + (len(target.rows) > pos + 1), *more, **last)
    assert run(target, draft, [1], Request(20), FixedGamma(3)).token_ids != alone.token_ids[:20]


def test_a_perfect_drafter_is_always_accepted_and_fed_two_tokens(pair):
    target, draft = pair(7, noise=0.0)
    trace = run(target, draft, [1, 2, 3], Request(31), FixedGamma(4))
    assert [(r.drafted, r.accepted) for r in trace.rounds] == [(4, 4)] * 6
    # prompt, then the first token and three drafts, then in every round two tokens and three drafts
    assert draft.fed[:9] == [(0, 3), (3, 1), (4, 1), (5, 1), (6, 1), (7, 2), (9, 1), (10, 1), (11, 1)]
    assert target.fed == [(0, 3)] + [(3 + 5 * i, 5) for i in range(6)]


def test_after_a_rejection_the_drafter_lags_one_token(pair):
    target, draft = pair(3, 2.0)
    trace = run(target, draft, [1, 2, 3], Request(30), FixedGamma(3))
    first_calls = draft.fed[1::3]  # after the prompt, three calls a round
    rejected_before = [r.accepted < r.drafted for r in trace.rounds if r.drafted == 3]
    assert any(rejected_before)
    assert all(n == 1 for rejected, (_, n) in zip(rejected_before, first_calls[1:], strict=False) if rejected)


@pytest.mark.parametrize(("new", "drafted"), [(1, []), (2, [0]), (3, [1]), (7, [3, 1])])
def test_gamma_shrinks_before_max_new_tokens(pair, new, drafted):
    trace = run(*pair(7, noise=0.0), [1, 2], Request(new), FixedGamma(3))
    assert [r.drafted for r in trace.rounds] == drafted
    assert (len(trace.token_ids), trace.finish_reason) == (new, "length")


def test_context_bounds_every_call_and_the_last_token_needs_no_row(pair):
    trace = run(*pair(7, noise=0.0, context=10), [1, 2, 3], Request(100), FixedGamma(4))
    assert (len(trace.token_ids), trace.finish_reason) == (8, "context")
    full = run(*pair(7, context=3), [1, 2, 3], Request(100), FixedGamma(4))
    assert (len(full.token_ids), full.finish_reason) == (1, "context")


def test_a_full_drafter_leaves_the_target_to_go_on(pair):
    target, draft = pair(7, noise=0.0, draft_context=8)
    trace = run(target, draft, [1, 2, 3], Request(20), FixedGamma(3))
    assert trace.token_ids == run(*pair(7, noise=0.0), [1, 2, 3], Request(20)).token_ids
    assert [r.drafted for r in trace.rounds][:3] == [3, 1, 0]
    assert all(r.drafted == 0 for r in trace.rounds[2:])


def test_eos_inside_accepted_tokens_ends_the_text(pair):
    alone = run(*pair(7, noise=0.0), [1, 2, 3], Request(20))
    eos = alone.token_ids[2]
    cut = alone.token_ids.index(eos) + 1
    trace = run(*pair(7, noise=0.0), [1, 2, 3], Request(20, frozenset({eos})), FixedGamma(4))
    assert (trace.token_ids, trace.finish_reason) == (alone.token_ids[:cut], "eos")
    assert trace.rounds[-1].accepted == 4  # the record keeps what was accepted


def test_ids_unknown_to_the_drafter_are_replaced_and_never_drafted(pair):
    target, draft = pair(11, noise=0.0, vocab=8, draft_vocab=3)
    trace = run(target, draft, [7, 5, 1], Request(40), FixedGamma(3))
    assert trace.token_ids == run(*pair(11, vocab=8), [7, 5, 1], Request(40)).token_ids
    assert max(trace.token_ids) >= 3


@pytest.mark.parametrize("draft_vocab", [3, 6, 9])
def test_sampling_with_every_vocabulary_stays_inside_the_target(pair, draft_vocab):
    request = Request(60, sampling=Sampling(temperature=0.8, top_k=4, top_p=0.95, seed=5))
    trace = run(*pair(5, context=200, draft_vocab=draft_vocab), [1], request, FixedGamma(3))
    again = run(*pair(5, context=200, draft_vocab=draft_vocab), [1], request, FixedGamma(3))
    assert trace.token_ids == again.token_ids
    assert len(trace.token_ids) == 60
    assert 0 < sum(r.accepted for r in trace.rounds)
    assert all(0 <= t < 6 for t in trace.token_ids)


def test_times_of_a_round_are_parts_of_the_whole(pair):
    trace = run(*pair(5), [1], Request(30, sampling=Sampling(temperature=1.0)), FixedGamma(2))
    for r in trace.rounds:
        assert min(r.verify_s, r.sampling_s, r.dispatch_s) >= 0.0
        assert (r.draft_s > 0) == (r.drafted > 0)
        assert r.total_s == r.draft_s + r.verify_s + r.sampling_s + r.loop_s
        assert r.loop_s == r.dispatch_s + r.deciding_s > r.dispatch_s
    assert trace.decode_s >= sum(r.total_s for r in trace.rounds)
