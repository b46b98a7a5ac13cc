"""The law of sampled output: exact by enumeration of every random choice, and by chi-square with real rng."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
from scipy.stats import chisquare

from hetero_sd.runtime.decode.drafters import MODEL, Draft
from hetero_sd.runtime.decode.drafters.early_exit import EarlyExitDrafter
from hetero_sd.runtime.decode.drafters.either import EitherDrafter
from hetero_sd.runtime.decode.drafters.model import ModelDrafter
from hetero_sd.runtime.decode.drafters.ngram import NgramDrafter
from hetero_sd.runtime.decode.drafters.ngram_pool import NgramPool
from hetero_sd.runtime.decode.generate import Request, generate
from hetero_sd.runtime.decode.policy import FixedGamma
from hetero_sd.runtime.decode.sampling import Rng, Sampling, probabilities
from hetero_sd.runtime.decode.speculate import accept_sampled, speculate
from hetero_sd.runtime.decode.stats import acceptance_rate
from hetero_sd.runtime.decode.trace import Round, Stopwatch, Trace

SAMPLED = Sampling(temperature=1.0)


class EveryChoice:
    """Rng that, over repeated runs, take every possible path; ``weight`` is the probability of the current one."""

    def __init__(self) -> None:
        self._path: list[list] = []  # [branches still to take, the first is the current one]
        self._step, self.weight = 0, 1.0

    def next_path(self) -> bool:
        while self._path and len(self._path[-1]) == 1:
            self._path.pop()
        if self._path:
            self._path[-1].pop(0)
        self._step, self.weight = 0, 1.0
        return bool(self._path)

    def _choose(self, branches):
        if self._step == len(self._path):
            self._path.append([b for b in branches if b[1] > 0])
        value, probability = self._path[self._step][0]
        self._step += 1
        self.weight *= probability
        return value

    def draw(self, weights):
        return self._choose(list(enumerate(weights / weights.sum())))

    def accept(self, p, q):
        passes = min(1.0, p / q)
        return self._choose([(True, passes), (False, 1 - passes)])


def law_of(run):
    """Return {result: probability} over all paths of ``run(rng)``."""
    rng, law = EveryChoice(), defaultdict(float)
    while True:
        law[run(rng)] += rng.weight
        if not rng.next_path():
            return law


def wrong_residual(logits, drafted, q, sampling, rng):
    """As accept_sampled, but a rejected token is replaced by a sample from p: negative control that must be caught."""
    for accepted, token in enumerate(drafted):
        p = probabilities(logits[accepted], sampling)
        if not rng.accept(p[token], q[accepted][token]):
            return accepted, rng.draw(p)
    return len(drafted), rng.draw(probabilities(logits[len(drafted)], sampling))


def distance(one, other):
    return sum(abs(one.get(k, 0.0) - other.get(k, 0.0)) for k in {*one, *other})


def whole_texts(pair, sampling, gamma, vocab=3, new=4, draft_vocab=None, policy=FixedGamma, kind=ModelDrafter):
    """Laws of all texts of ``new`` tokens: by speculation, and by the target alone."""

    def by(stream):
        def text(rng):
            target, draft = pair(2, 1.5, vocab=vocab, draft_vocab=draft_vocab)
            if kind is EarlyExitDrafter:
                draft.rows = target.rows
            trace = Trace()
            return tuple(stream(target, draft, [1], Request(new, frozenset({2}), sampling), trace, rng))

        return law_of(text)

    both = by(
        lambda t, d, ids, r, trace, rng: speculate(t, kind(d, t.vocab, r.sampling), ids, r, policy(gamma), trace, rng)
    )
    return both, by(lambda t, d, ids, r, trace, rng: generate(t, ids, r, trace, rng))


@pytest.mark.parametrize("gamma", [1, 2])
@pytest.mark.parametrize(
    "sampling",
    [SAMPLED, Sampling(temperature=0.6, top_k=2), Sampling(temperature=1.5, top_p=0.8)],
    ids=["plain", "top-k", "top-p"],
)
def test_whole_texts_have_the_law_of_the_target(pair, sampling, gamma):
    both, alone = whole_texts(pair, sampling, gamma)
    assert math.isclose(sum(both.values()), 1.0)
    assert distance(both, alone) < 1e-12


def test_law_of_drafts_in_the_targets_own_cache(pair):
    both, alone = whole_texts(pair, SAMPLED, 2, kind=EarlyExitDrafter)
    assert distance(both, alone) < 1e-12


@pytest.mark.parametrize("draft_vocab", [2, 4])
def test_law_with_another_vocabulary_of_the_drafter(pair, draft_vocab):
    both, alone = whole_texts(pair, SAMPLED, 2, draft_vocab=draft_vocab)
    assert distance(both, alone) < 1e-12


@pytest.mark.parametrize("least", [0.2, 0.5])
def test_law_where_drafts_are_stopped_by_the_probability_of_their_last_token(pair, by_confidence, monkeypatch, least):
    """The negative control drops the token that it was told of, too: its probability then decides whether it counts."""
    both, alone = whole_texts(pair, SAMPLED, 3, policy=lambda gamma: by_confidence(gamma, least))
    assert distance(both, alone) < 1e-12
    honest = ModelDrafter.propose

    def dropping(self, tokens, source, gamma, watch, rng, go_on):
        draft = honest(self, tokens, source, gamma, watch, rng, go_on)
        kept = len(draft.tokens) - (draft.q[-1][draft.tokens[-1]] < least)
        return Draft(draft.tokens[:kept], draft.q[:kept])

    monkeypatch.setattr(ModelDrafter, "propose", dropping)
    both, alone = whole_texts(pair, SAMPLED, 3, policy=lambda gamma: by_confidence(gamma, least))
    assert distance(both, alone) > 0.01


def ngram_texts(pair, gamma, new=4, with_model=False):
    """Laws of texts after a prompt that repeats: with n-gram drafting, a model beside it or not, and by the target."""

    def by(stream):
        def text(rng):
            target, draft = pair(2, 1.5, vocab=3)
            request = Request(new, frozenset({2}), SAMPLED)
            return tuple(stream(target, draft, [1, 0, 1, 0, 1], request, Trace(), rng))

        return law_of(text)

    def drafting(target, draft, ids, request, trace, rng):
        drafter = NgramDrafter(NgramPool(1 << 6), target.vocab, request.sampling)
        if with_model:
            drafter = EitherDrafter(drafter, ModelDrafter(draft, target.vocab, request.sampling))
        yield from speculate(target, drafter, ids, request, FixedGamma(gamma), trace, rng)
        sources.update(r.source for r in trace.rounds if r.drafted)

    sources = set()
    laws = by(drafting), by(lambda target, draft, *given: generate(target, *given))
    assert (MODEL in sources, any(source != MODEL for source in sources)) == (with_model, True)
    return laws


@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize("gamma", [1, 3])
def test_ngram_drafts_leave_the_law_of_the_target(pair, gamma, with_model):
    """They are drawn from a distribution with one token: accepted with its probability, replaced from the others."""
    both, alone = ngram_texts(pair, gamma, with_model=with_model)
    assert math.isclose(sum(both.values()), 1.0)
    assert distance(both, alone) < 1e-12


@pytest.mark.parametrize("with_model", [False, True])
def test_ngram_drafts_with_a_wrong_residual_do_not(pair, monkeypatch, with_model):
    monkeypatch.setattr("hetero_sd.runtime.decode.speculate.accept_sampled", wrong_residual)
    both, alone = ngram_texts(pair, 3, with_model=with_model)
    assert distance(both, alone) > 0.01


@pytest.mark.parametrize("kind", [ModelDrafter, EarlyExitDrafter])
def test_wrong_residual_changes_the_law(pair, monkeypatch, kind):
    monkeypatch.setattr("hetero_sd.runtime.decode.speculate.accept_sampled", wrong_residual)
    both, alone = whole_texts(pair, SAMPLED, 2, kind=kind)
    assert distance(both, alone) > 0.01


def test_unprocessed_q_changes_the_law(pair, monkeypatch):
    """The drafter's samples must come from the q that acceptance is told."""
    honest = ModelDrafter.propose

    def tempered(self, tokens, source, gamma, watch, rng, go_on):
        draft = honest(self, tokens, source, gamma, watch, rng, go_on)
        return Draft(draft.tokens, [np.sqrt(row) / np.sqrt(row).sum() for row in draft.q])

    monkeypatch.setattr(ModelDrafter, "propose", tempered)
    both, alone = whole_texts(pair, SAMPLED, 2)
    assert distance(both, alone) > 0.01


def one_round(pair, accept, vocab=8, gamma=3):
    """Laws of the gamma + 1 next tokens: a round, continued by the target's own law, and the target's own law."""
    prompt = [1, 3, 2]
    target, draft = pair(4, 1.0, vocab=vocab, states=13)

    def round_of(rng):
        drafter = ModelDrafter(draft, target.vocab, SAMPLED)
        drafter.read(prompt, len(prompt), 0, Stopwatch())
        drafts = drafter.propose(prompt, MODEL, gamma, Stopwatch(), rng)
        accepted, extra = accept(target.forward([2, *drafts.tokens], 2), drafts.tokens, drafts.q, SAMPLED, rng)
        return (*drafts.tokens[:accepted], extra)

    target.extend(prompt[:-1], 0)
    law = law_of(round_of)
    known = {}

    def extended(start):
        out = dict(start)
        for length in range(gamma + 1):
            for text in [t for t in out if len(t) == length]:
                mass = out.pop(text)
                if text not in known:
                    known[text] = probabilities(target.forward([*prompt, *text], 0)[-1], SAMPLED)
                for token, p in enumerate(known[text]):
                    out[(*text, token)] = out.get((*text, token), 0.0) + mass * p
        return out

    return extended(law), extended({(): 1.0})


def test_one_round_of_eight_tokens_and_gamma_three_is_exact(pair):
    speculated, alone = one_round(pair, accept_sampled)
    assert len(alone) == 8**4
    assert distance(speculated, alone) < 1e-12


def test_one_round_with_wrong_residual_is_not(pair):
    speculated, alone = one_round(pair, wrong_residual, vocab=4, gamma=2)
    assert distance(speculated, alone) > 0.01


P_LOGITS = np.log(np.array([0.40, 0.25, 0.15, 0.12, 0.08]))
Q_LOGITS = np.log(np.array([0.20, 0.30, 0.05, 0.40, 0.05]))
ALPHA = 0.20 + 0.25 + 0.05 + 0.12 + 0.05  # sum of min(p, q)


def rounds(count, gamma, accept, seed):
    """Return the number accepted and the first emitted token of rounds with fixed p and q."""
    rng, q = Rng(seed), probabilities(Q_LOGITS, SAMPLED)
    logits = np.stack([P_LOGITS] * (gamma + 1))
    out = []
    for _ in range(count):
        drafted = [rng.draw(q) for _ in range(gamma)]
        accepted, extra = accept(logits, drafted, [q] * gamma, SAMPLED, rng)
        out.append((accepted, drafted[0] if accepted else extra))
    return out


@pytest.mark.slow
def test_first_token_passes_chi_square_and_the_wrong_residual_fails():
    count = 100_000
    expected = count * probabilities(P_LOGITS, SAMPLED)

    def p_value(accept):
        first = [token for _, token in rounds(count, 2, accept, seed=1)]
        return chisquare(np.bincount(first, minlength=5), expected).pvalue

    assert p_value(accept_sampled) > 1e-3
    assert p_value(wrong_residual) < 1e-9


@pytest.mark.parametrize("gamma", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_tokens_per_round_and_acceptance_follow_the_formulas(gamma):
    accepted = [a for a, _ in rounds(40_000, gamma, accept_sampled, seed=2)]
    expected = (1 - ALPHA ** (gamma + 1)) / (1 - ALPHA)  # Leviathan et al. 2023, equation 1
    assert np.mean(accepted) + 1 == pytest.approx(expected, rel=0.01)
    assert np.mean(accepted) + 1 != pytest.approx((1 - ALPHA**gamma) / (1 - ALPHA), rel=0.01)

    record = [Round(gamma, a, 0.0, 0.0, 0.0, 0.0) for a in accepted]
    alpha, (low, high) = acceptance_rate(record)
    assert low < alpha < high
    assert alpha == pytest.approx(ALPHA, rel=0.01)
    naive = sum(accepted) / (gamma * len(accepted))  # counts drafts that were never judged
    if gamma > 1:
        assert naive != pytest.approx(ALPHA, rel=0.1)
