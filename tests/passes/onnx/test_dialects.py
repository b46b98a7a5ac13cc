"""Other exporters' spellings and other families: the same numbers, or the reason why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hetero_sd.reference import ReferenceModel
from passes.onnx import canonicalise
from passes.onnx.testing import CanonicalModel, case, worst_difference
from targets.errors import UserError

DIALECTS = Path(__file__).parents[2] / "data" / "dialects"
# what is special about each: facts that differ from a Llama by the newest exporter
SPECIAL: dict[str, dict[str, Any]] = {
    "llama-opset23": {},  # Attention, RMSNormalization and RotaryEmbedding nodes, the cache beside them
    "llama-opset24": {},  # Attention nodes, norm and rotation written out
    "llama-torchscript": {},  # opset 17, bounds computed from shapes
    "llama-eager": {},  # no guard against NaN
    "llama-ids-only": {"padding": "none", "positions": "past"},
    "llama-yarn": {},  # tables with a scale
    "mistral-window": {"window": 16, "family": "mistral"},
    "phi3-packed": {"layers": 1, "family": "phi3"},  # q, k, v in one product, gate and up in another
    "glm-interleaved": {"interleaved": True, "rotary_dim": 4, "family": "qwen2"},
    "smollm3-nope": {"layers": 2},  # the second layer does not rotate
    "olmo2-post-norm": {"family": "olmo2"},  # norms after the products, q and k norm over all heads
}
USUAL = {"layers": 1, "window": 0, "padding": "left and right", "family": "llama", "positions": "input"}
CONTEXT = 64


def test_every_file_has_a_test() -> None:
    others = {"gemma", "granite", "phi3-longrope"}
    assert SPECIAL.keys() | others <= {p.stem for p in DIALECTS.iterdir()}


def numbers_agree(name: str, context: int) -> float:
    """The worst difference over several sizes that fit the context."""
    path = DIALECTS / f"{name}.onnx"
    decoder, reference = canonicalise(path, context), ReferenceModel(path, threads=1)
    canonical, worst = CanonicalModel(decoder.model), 0.0
    padded = [(6, 0, (2, 0)), (3, 5, (2, 1))] if decoder.facts.padding == "left and right" else []
    for new, past, pads in [(3, 5, ()), (1, 9, ()), (6, 0, ()), (4, 24, ()), *padded]:
        feed = case(decoder.facts, 2, new, past, pads)
        caches = {n: x for n, x in feed.items() if n.startswith("past")}
        expected = reference.run(feed["input_ids"], caches, feed["attention_mask"], feed["position_ids"])
        worst = max(worst, worst_difference(canonical.run(feed), expected, feed["attention_mask"], past))
    return worst


@pytest.mark.parametrize("name", SPECIAL)
def test_same_numbers(name: str) -> None:
    assert numbers_agree(name, CONTEXT) < 1e-5


@pytest.mark.parametrize("name", SPECIAL)
def test_facts(name: str) -> None:
    facts = canonicalise(DIALECTS / f"{name}.onnx", CONTEXT).facts
    expected = {**USUAL, "interleaved": False, "rotary_dim": 8, **SPECIAL[name]}
    assert facts.rope is not None
    actual = {**vars(facts), **vars(facts.rope)}
    assert {n: actual[n] for n in expected} == expected


def test_layers_without_rotation_have_none() -> None:
    graph = canonicalise(DIALECTS / "smollm3-nope.onnx", CONTEXT).model.graph
    assert [n.op_type for n in graph].count("RotaryEmbedding") == 2  # query and key of one layer of two


@pytest.mark.parametrize("name", ["gemma", "granite"])
def test_scaled_embeddings_are_refused_by_name_or_right(name: str) -> None:
    try:
        assert numbers_agree(name, CONTEXT) < 1e-5
    except UserError as error:
        assert "ai.onnx.Mul (node " in str(error)  # noqa: PT017 (refused is one of two right outcomes)


def test_length_dependent_rotation_is_refused() -> None:
    reason = r"ai.onnx.Softmax \(node '.*'\): the rotation of a position depends on the other positions"
    with pytest.raises(UserError, match=reason):
        canonicalise(DIALECTS / "phi3-longrope.onnx", CONTEXT)


def test_length_dependent_rotation_is_taken_where_it_does_not_depend_yet() -> None:
    """The scaling sets in beyond 32 positions; within them the rotation is one of the position alone."""
    assert numbers_agree("phi3-longrope", 32) < 1e-5
    with pytest.raises(UserError, match="beyond 32 tokens; compile with --context 32 or less"):
        canonicalise(DIALECTS / "phi3-longrope.onnx", 33)
