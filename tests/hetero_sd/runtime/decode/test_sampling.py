"""Processing of logits against a slow reference, and the rng."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from hetero_sd.runtime.decode.sampling import Rng, Sampling, probabilities
from hetero_sd.runtime.model.protocol import NotFiniteError

# few distinct values, so that ties are common; exactly representable in float32
rows = st.lists(st.integers(-8, 8).map(lambda i: i / 4), min_size=1, max_size=40)


def slow_reference(logits, sampling):
    """The definition, by sorting everything: (value falling, id rising)."""
    logits = [float(x) for x in logits]
    best = max(logits)
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    kept = order[: sampling.top_k] if sampling.top_k else order
    weights = {i: np.exp((logits[i] - best) / sampling.temperature) for i in kept}
    total = sum(weights.values())
    p = {i: w / total for i, w in weights.items()}
    if sampling.top_p < 1:
        nucleus, mass = [], 0.0
        for i in kept:
            nucleus.append(i)
            mass += p[i]
            if mass >= sampling.top_p - 1e-12:
                break
        p = {i: p[i] for i in nucleus}
    out = np.zeros(len(logits))
    out[list(p)] = np.array(list(p.values())) / sum(p.values())
    return out


@given(
    logits=rows,
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, 45),
    top_p=st.sampled_from([0.0917, 0.5003, 0.9011, 1.0]),
)
def test_equals_the_definition(logits, temperature, top_k, top_p):
    sampling = Sampling(temperature, top_k, top_p)
    got = probabilities(np.array(logits, np.float32), sampling)
    np.testing.assert_allclose(got, slow_reference(logits, sampling), atol=1e-12)
    assert got.sum() == pytest.approx(1.0)


def test_perturbed_definition_is_told_apart():
    logits = np.array([1.0, 0.5, 0.0], np.float32)
    got = probabilities(logits, Sampling(1.0, top_p=0.7))
    assert not np.allclose(got, slow_reference(logits, Sampling(1.0, top_p=0.5)))
    assert not np.allclose(got, slow_reference(logits, Sampling(1.1, top_p=0.7)))


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.999999])
def test_nucleus_of_a_large_flat_row_needs_more_than_the_first_candidates(top_p):
    logits = np.random.default_rng(0).standard_normal(30_000).astype(np.float32)
    sampling = Sampling(1.0, top_p=top_p)
    np.testing.assert_allclose(probabilities(logits, sampling), slow_reference(logits, sampling), atol=1e-15)


def test_tiny_temperature_is_greedy_and_quiet():
    with np.errstate(all="raise", under="ignore"):
        p = probabilities(np.array([1.0, 3.0, -np.inf, 2.0], np.float32), Sampling(1e-308))
    assert p.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [-np.inf, -np.inf], [np.inf, 0.0]])
def test_broken_logits_are_reported(bad):
    with pytest.raises(NotFiniteError, match="not finite"):
        probabilities(np.array(bad, np.float32), Sampling(1.0))


def test_draws_follow_the_weights_and_never_take_weight_zero():
    weights = np.array([0.0, 1.0, 3.0, 0.0, 4.0, 0.0])
    rng = Rng(0)
    counts = np.bincount([rng.draw(weights) for _ in range(20_000)], minlength=6)
    assert counts[[0, 3, 5]].tolist() == [0, 0, 0]
    positive = weights > 0
    assert chisquare(counts[positive], 20_000 * weights[positive] / weights.sum()).pvalue > 1e-3
    assert chisquare(counts[positive], [5_000, 5_000, 10_000]).pvalue < 1e-9


def test_largest_random_number_stays_on_a_possible_id():
    class Largest:
        def random(self):
            return 1.0 - 2.0**-53

    rng = Rng(0)
    rng._generator = Largest()
    for scale in (1.0, 1.0 + 2**-52, 0.1, 3.0):
        assert rng.draw(scale * np.array([0.3, 0.7, 0.0])) == 1


def test_acceptance_has_probability_p_over_q():
    rng = Rng(1)
    share = np.mean([rng.accept(0.3, 0.4) for _ in range(20_000)])
    assert share == pytest.approx(0.75, abs=0.015)  # 5 standard deviations
    assert all(rng.accept(0.4, 0.4) for _ in range(100))
    assert not any(rng.accept(0.0, 0.4) for _ in range(100))


def test_same_seed_same_choices():
    weights = np.ones(1000)
    draws = [[rng.draw(weights) for _ in range(20)] for rng in (Rng(7), Rng(7), Rng(8))]
    assert draws[0] == draws[1] != draws[2]
