"""Masks in several spellings are proven; near misses are refused with the query and key that differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from passes.onnx.pass_context import Declined, Importing
from passes.onnx.prove.prove_mask import Mask, prove_mask
from passes.onnx.rewrite.attention_sites import Site
from passes.onnx.rewrite.local_functions import HIDDEN
from passes.onnx.testing import importing

HEADS = 4
INPUTS = "int64[b,s] input_ids, int64[b,t] attention_mask, float[b,2,p,4] K"
CONSTANTS = (
    "int64 zero = {0}, int64 one = {1}, int64 w = {5}, int64[1] last = {-1}, int64[1] first = {0}, "
    "int64[2] middle = {1,2}, float shown = {0}, float hidden = {-1000000}, float half = {0.5}, float small = {-1}"
)
# query and key positions, and seen = key <= query
POSITIONS = (
    "p1 = Shape <start = 2, end = 3> (K) p = Squeeze(p1) s1 = Shape <start = 1, end = 2> (input_ids) s = Squeeze(s1) "
    "t = Add(p, s) q1 = Range(p, t, one) q = Unsqueeze(q1, last) k = Range(zero, t, one) "
    "causal = LessOrEqual(k, q) kept1 = Cast <to = 9> (attention_mask) kept = Unsqueeze(kept1, middle) "
)
SCORED = "x = Mul(scores, half) "


def mask_of(body: str, scores: bool = False, context: int = 64) -> tuple[Importing, Site]:
    more = ", float[b,4,s,t] scores" if scores else ""
    imp = importing(
        f"g ({INPUTS}{more}) => (float[b,4,s,t] m) <{CONSTANTS}> {{ {POSITIONS} {body} }}", context=context, opset=18
    )
    key = next(v for v in imp.graph.inputs if v.name == "K")
    key.name = "past_key_values.0.key"
    score = next((v for v in imp.graph.inputs if v.name == "scores"), None)
    masked = imp.graph.outputs[0]
    site = Site(
        node=masked.producer(), query=None, key=None, value=None, scores=score, masked=masked, causal=False,
        weights=None, output=None, scale=1.0,
    )  # fmt: skip
    return imp, site


def proven(body: str, scores: bool = False, context: int = 64) -> Mask:
    imp, site = mask_of(body, scores, context)
    return prove_mask(imp, site, HEADS)


def declined(body: str, scores: bool = False, context: int = 64) -> str:
    with pytest.raises(Declined) as caught:
        proven(body, scores, context)
    return str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        "m = And(causal, kept)",
        "seen = And(causal, kept) m = Where(seen, shown, hidden)",
        "a = Where(causal, shown, hidden) b = Where(kept, shown, hidden) m = Add(a, b)",
    ],
)
def test_mask_operands(body: str) -> None:
    assert proven(body) == Mask(window=0, padding=True, scale=1.0)


@pytest.mark.parametrize(
    "body",
    [
        "seen = And(causal, kept) add = Where(seen, shown, hidden) m = Add(x, add)",
        "seen = And(causal, kept) m = Where(seen, x, hidden)",
        "seen = And(causal, kept) y = Where(causal, x, hidden) m = Where(kept, y, hidden)",
    ],
)
def test_masks_on_scores_and_their_scale(body: str) -> None:
    mask = proven(SCORED + body, scores=True)
    assert (mask.window, mask.padding) == (0, True)
    assert mask.scale == pytest.approx(0.5, abs=1e-6)


def test_no_padding() -> None:
    assert proven("m = Identity(causal)") == Mask(window=0, padding=False, scale=1.0)


def test_sliding_window() -> None:
    assert proven("d = Sub(q, k) near = Less(d, w) n = And(causal, near) m = And(n, kept)").window == 5


def test_a_window_as_long_as_the_context_is_none() -> None:
    body = "d = Sub(q, k) near = Less(d, w) n = And(causal, near) m = And(n, kept)"
    assert proven(body, context=5).window == 0
    assert proven(body, context=6).window == 5


def test_no_causality() -> None:
    reason = declined("n = Not(causal) all = Or(causal, n) m = And(all, kept)")
    assert "query 0 sees key 1" in reason


def test_strictly_causal() -> None:
    reason = declined("c = Less(k, q) m = And(c, kept)")
    assert "does not see key" in reason


def test_padding_with_the_wrong_sign() -> None:
    reason = declined("n = Not(kept) m = And(causal, n)")
    assert "does not see key" in reason


def test_positions_that_forget_the_past() -> None:
    reason = declined("q2 = Range(zero, s, one) q3 = Unsqueeze(q2, last) c = LessOrEqual(k, q3) m = And(c, kept)")
    assert "does not see key" in reason


def test_a_bias_that_is_no_mask() -> None:
    body = "seen = And(causal, kept) a = Where(seen, small, hidden) m = Add(x, a)"
    assert "a bias that is neither a mask nor grows evenly" in declined(SCORED + body, scores=True)
    assert "a bias that is neither a mask nor grows evenly" in declined(
        "seen = And(causal, kept) m = Where(seen, small, hidden)"
    )


def test_a_mask_too_weak_to_hide() -> None:
    body = "seen = And(causal, kept) a = Where(seen, shown, small) m = Add(x, a)"
    assert "a bias that is neither a mask nor grows evenly" in declined(SCORED + body, scores=True)


def test_the_mask_reads_the_cache() -> None:
    body = "big = ReduceMax(K) c = Greater(big, shown) n = Or(causal, c) m = And(n, kept)"
    assert "depends on the contents of past_key_values.0.key" in declined(body)


def test_no_mask_at_all() -> None:
    imp, site = mask_of("m = Identity(causal)")
    for causal, reason in ((False, "there is no mask"), (True, "causal flag")):
        bare: Any = Site(**{**vars(site), "masked": None, "causal": causal})
        with pytest.raises(Declined, match=reason):
            prove_mask(imp, bare, HEADS)


def test_hidden_is_finite_in_the_function() -> None:
    """A row where everything is hidden must not become NaN: its value would reach real rows through the cache."""
    assert np.isfinite(HIDDEN)
    assert np.isfinite(np.float32(HIDDEN))
