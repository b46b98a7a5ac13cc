"""Quantised exports: the canonical decoder's numbers are those of the reference with dequantised floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from hetero_sd.reference import ReferenceModel
from passes.analysis.count_work import count_work
from passes.onnx import canonicalise
from passes.onnx.pass_context import run_pass
from passes.onnx.quantise.recipe import Recipe, block_format
from passes.onnx.rewrite.quantise_weights import quantise_weights
from passes.onnx.testing import CanonicalModel, case, importing, lines, worst_difference

DATA = Path(__file__).parents[3] / "data"
EXPORTS = DATA / "exports"
FLOATS = [
    *("llama-dynamo-fp32", "llama-dynamo-fp16", "llama-drafter-dynamo-fp32", "llama-genai-fp16", "llama-genai-fp32"),
    *("qwen2-dynamo-fp32", "qwen2-genai-cuda-fp16", "qwen2-genai-fp32"),
    *("qwen3-dynamo-fp32", "qwen3-genai-fp16", "qwen3-genai-fp32"),
]


def recipe(bits: int, block: int) -> Recipe:
    matrices, tables = block_format(f"int{bits}", block), block_format("int8", min(block, 32))
    return Recipe(matrices, tables, tables)


def difference(name: str, ours: Recipe | None, theirs: Recipe | None) -> float:
    """Of all outputs of the canonical decoder from the reference's, relative to these."""
    path = next(p for p in (EXPORTS / name, DATA / "families" / name) if p.is_dir()) / "model.onnx"
    decoder, reference = canonicalise(path, 64, ours), ReferenceModel(path, threads=1, recipe=theirs)
    feed = case(decoder.facts, 1, 5, 0)
    past = {n: x for n, x in feed.items() if n.startswith("past")}
    expected = reference.run(feed["input_ids"], past, feed["attention_mask"], feed["position_ids"])
    return worst_difference(CanonicalModel(decoder.model).run(feed), expected, feed["attention_mask"], 0)


@pytest.mark.parametrize("name", FLOATS)
def test_the_decoder_computes_with_what_the_codes_stand_for(name: str) -> None:
    """onnxruntime's MatMulNBits reads the codes, its MatMul the floats."""
    assert difference(name, recipe(4, 32), recipe(4, 32)) < 1e-5


def test_gemms_of_flattened_rows() -> None:
    """GPT-2's, with biases; its embedding of positions stays as it is, and so does a matrix that no block divides."""
    by_name = (("*c_proj.weight", None),)
    given = recipe(4, 16)
    given = Recipe(given.matrices, given.head, given.embedding, by_name)
    assert difference("gpt2-dynamo-fp32", given, given) < 1e-5
    assert difference("gpt2-dynamo-fp32", given, None) > 0.01


@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 64), (8, 16), (8, 32), (8, 64)])
def test_every_format(bits: int, block: int) -> None:
    name = "qwen2-genai-fp32"
    by_name = (("*down_proj*", block_format("int4", 16)),)  # its sums of 96 have no blocks of 64
    given = recipe(bits, block)
    given = Recipe(given.matrices, given.head, given.embedding, by_name)
    assert difference(name, given, given) < 1e-5


@pytest.mark.parametrize("other", [None, recipe(8, 32), recipe(4, 16)])
def test_another_recipe_is_noticed(other: Recipe | None) -> None:
    """The negative control: the same check with weights of another format, or with floats."""
    assert difference("llama-dynamo-fp32", recipe(4, 32), other) > 0.01


def test_what_the_cost_model_sees() -> None:
    decoder = canonicalise(EXPORTS / "qwen2-dynamo-fp32" / "model.onnx", 64, recipe(4, 32))
    spec = count_work(decoder, "x")
    assert decoder.facts.int8_activations
    assert decoder.facts.tied
    formats = {(op.kind, op.part.kind, op.format.dtype, op.format.block) for op in spec.operators if op.matrix_values}
    assert {dtype for _, _, dtype, _ in formats} == {"int4", "int8"}
    assert all(f[2:] == ("int8", 32) for f in formats if f[0] == "embedding" or f[1] == "head")
    floats = count_work(canonicalise(EXPORTS / "qwen2-dynamo-fp32" / "model.onnx", 64), "x")
    assert spec.weight_bytes < 0.3 * floats.weight_bytes


def test_before_and_after() -> None:
    text = """
        m (float[1, S, 32] x, float[32, 16] w) => (float[1, S, 16] logits)
        { logits = MatMul(x, w) }
    """
    imp = importing(text)
    w = np.random.default_rng(0).standard_normal((32, 16), np.float32)
    imp.graph.inputs.pop()
    weight = next(iter(imp.graph)).inputs[1]
    weight.const_value = ir.tensor(w, name="w")
    imp.graph.register_initializer(weight)
    before = lines(imp.graph)
    assert run_pass(quantise_weights, imp).matched == 0  # no recipe: left alone
    assert lines(imp.graph) == before
    imp.recipe = Recipe(None, block_format("int4", 16), None)
    assert run_pass(quantise_weights, imp).matched == 1
    after = list(imp.graph)
    assert [node.op_type for node in after] == ["Cast", "DequantizeLinear", "MatMul"]
    q, scale = imp.graph.initializers["w.quantised"], imp.graph.initializers["w.quantised.scales"]
    assert (q.dtype, tuple(q.shape)) == (ir.DataType.INT4, (32, 16))
    assert (scale.dtype, tuple(scale.shape)) == (ir.DataType.FLOAT16, (2, 16))
    assert after[1].attributes["block_size"].value == 16
    assert after[1].attributes["axis"].value == 0
    assert "w" not in imp.graph.initializers
