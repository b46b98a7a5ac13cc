"""A canonical decoder cut after some of its layers computes what an export of these layers does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from costmodel import early_exit
from passes.analysis.count_work import count_work
from passes.onnx import canonicalise
from passes.onnx.first_layers import first_layers
from passes.onnx.label_parts import computed_nodes, part_of
from passes.onnx.testing import CanonicalModel, case
from passes.synthetic import LlamaShape, write_early_exit_pair
from passes.testing import TinyDecoder
from targets.errors import UserError

DATA = Path(__file__).parents[2] / "data"
# shared norms, norms of what a block computed, layers without positions, windows of every second layer, int4
FAMILIES = [
    *("families/cohere2-dynamo-fp32", "families/exaone4-dynamo-fp32", "families/smollm3-dynamo-fp32"),
    *("families/gemma3-optimum-fp32", "exports/qwen3-genai-int4"),
]


def test_the_first_layers_are_those_of_a_smaller_export(tmp_path: Path) -> None:
    shape = LlamaShape(layers=3, hidden=64, heads=4, kv_heads=2, ffn=96, vocab=50)
    write_early_exit_pair(tmp_path / "whole.onnx", tmp_path / "short.onnx", shape, 2, 0.5, "float32")
    whole, expected = (canonicalise(tmp_path / name, 64) for name in ("whole.onnx", "short.onnx"))
    short = first_layers(whole, 2)
    assert short.facts == expected.facts
    feed = case(expected.facts, batch=1, new=5, past=7)
    found, reference = CanonicalModel(short.model).run(feed), CanonicalModel(expected.model).run(feed)
    assert found.keys() == reference.keys()
    assert all(np.array_equal(found[name], reference[name]) for name in reference)
    shorter = CanonicalModel(first_layers(whole, 1).model).run(feed)
    assert not np.allclose(shorter["logits"], reference["logits"], atol=1e-2)


def test_the_whole_decoder_stays_as_it_is() -> None:
    whole = TinyDecoder(layers=3).decoder()
    feed = case(whole.facts, batch=1, new=3, past=2)
    before = CanonicalModel(whole.model).run(feed)
    short = first_layers(whole, 1)
    after = CanonicalModel(whole.model).run(feed)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    weights, own = whole.model.graph.initializers, short.model.graph.initializers
    assert all(value.const_value is weights[name].const_value for name, value in own.items())
    assert len(own) < len(weights)


@pytest.mark.parametrize("name", FAMILIES)
def test_its_operators_are_those_that_the_cost_model_takes(name: str) -> None:
    decoder = canonicalise(DATA / name / "model.onnx", 64)
    whole, short = count_work(decoder, name), count_work(first_layers(decoder, 1), name)
    priced = early_exit.first_layers(whole, 1)
    assert priced.operators == short.operators
    assert priced.operators != whole.operators


@pytest.mark.parametrize("parallel", [False, True])
def test_every_exit_of_a_deeper_one(parallel: bool) -> None:
    decoder = TinyDecoder(layers=4, parallel=parallel).decoder()
    whole = count_work(decoder, "tiny")
    for layers in (1, 2, 3):
        short = first_layers(decoder, layers)
        assert short.facts.layers == layers
        assert early_exit.first_layers(whole, layers).operators == count_work(short, "tiny").operators


def test_a_border_that_more_than_the_residual_stream_crosses_is_refused() -> None:
    decoder = TinyDecoder(layers=3).decoder()
    nodes = [node for node in computed_nodes(decoder.model.graph) if node.op_type == "MatMul"]
    parts = {(part.text, node.op_type): node for node in nodes if (part := part_of(node)) is not None}
    early, late = parts["ffn of layer 0", "MatMul"], parts["ffn of layer 2", "MatMul"]
    late.replace_input_with(0, early.inputs[0])
    with pytest.raises(UserError, match="2 values cross the border after layer 1, not the residual stream alone"):
        first_layers(decoder, 1)
