"""The whole importer on every committed export: same numbers as the export itself; negative controls differ."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from hetero_sd.reference import ReferenceModel
from passes.onnx import Decoder, canonicalise
from passes.onnx.testing import CanonicalModel, case, worst_difference
from targets.errors import UserError

EXPORTS = Path(__file__).parents[2] / "data" / "exports"
NAMES = sorted(p.name for p in EXPORTS.iterdir())
BOUND = 1e-5  # float32 against float32, of outputs of scale 1 to 10; measured 1.2e-6 at most
SIZES = [(3, 5), (1, 9), (6, 0)]
# padding on the left means something to exports with a mask of their own; GroupQueryAttention takes lengths
MASKED = [n for n in NAMES if "dynamo" in n or n in ("llama-genai-fp16", "qwen3-genai-fp16")]
LENGTHS = [n for n in NAMES if n not in MASKED]
ONE_TOKEN_AFTER_PAST = ["llama-genai-fp16", "qwen3-genai-fp16"]


@pytest.fixture(scope="module")
def loaded() -> dict[str, tuple[Decoder, CanonicalModel, ReferenceModel]]:
    return {}


def get(loaded: dict[str, Any], name: str) -> tuple[Decoder, CanonicalModel, ReferenceModel]:
    if name not in loaded:
        path = EXPORTS / name / "model.onnx"
        decoder = canonicalise(path, 64)
        loaded[name] = decoder, CanonicalModel(decoder.model), ReferenceModel(path, threads=1)
    return loaded[name]


def reference_outputs(reference: ReferenceModel, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    past = {n: x for n, x in feed.items() if n.startswith("past")}
    return reference.run(feed["input_ids"], past, feed["attention_mask"], feed["position_ids"])


def test_all_exports_are_there() -> None:
    assert len(NAMES) == 14
    assert len(MASKED) + len(LENGTHS) == 14


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("new", "past"), SIZES)
def test_same_numbers(loaded: dict[str, Any], name: str, batch: int, new: int, past: int) -> None:
    decoder, canonical, reference = get(loaded, name)
    feed = case(decoder.facts, batch, new, past)
    exporter_limit = (name in ONE_TOKEN_AFTER_PAST or (name in LENGTHS and batch > 1)) and new > 1 and past > 0
    if exporter_limit:  # the export cannot run this; the canonical form can, and it is the same row by row
        with pytest.raises(UserError, match="onnxruntime cannot run it"):
            reference_outputs(reference, feed)
        expected = one_token_at_a_time(reference, feed)
    else:
        expected = reference_outputs(reference, feed)
    assert worst_difference(canonical.run(feed), expected, feed["attention_mask"], past) < BOUND


def one_token_at_a_time(reference: ReferenceModel, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    past = {n: x for n, x in feed.items() if n.startswith("past")}
    logits = []
    for t in range(feed["input_ids"].shape[1]):
        out = reference.run(feed["input_ids"][:, t : t + 1], past)
        logits.append(out.pop("logits"))
        past = {n.replace("present", "past_key_values"): x for n, x in out.items()}
    return {"logits": np.concatenate(logits, axis=1), **out}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize(("new", "past", "pads"), [(6, 0, (2, 0)), (3, 5, (2, 1)), (1, 9, (4, 0))])
def test_same_numbers_padded_on_the_left(loaded: dict[str, Any], name: str, new: int, past: int, pads: Any) -> None:
    decoder, canonical, reference = get(loaded, name)
    assert decoder.facts.padding == "left and right"
    if name in ONE_TOKEN_AFTER_PAST and new > 1 and past > 0:
        assert not decoder.facts.many_tokens_after_past
        return
    feed = case(decoder.facts, 2, new, past, pads)
    expected = reference_outputs(reference, feed)
    assert worst_difference(canonical.run(feed), expected, feed["attention_mask"], past) < BOUND


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_mean_padding_on_the_right(loaded: dict[str, Any], name: str) -> None:
    decoder, canonical, reference = get(loaded, name)
    assert decoder.facts.padding == "right"
    right = case(decoder.facts, 2, 6, 0, (2, 0), "right")
    expected = reference_outputs(reference, right)
    assert worst_difference(canonical.run(right), expected, right["attention_mask"], 0) < BOUND
    left = case(decoder.facts, 2, 6, 0, (2, 0), "left")
    expected = reference_outputs(reference, left)
    assert worst_difference(canonical.run(left), expected, left["attention_mask"], 0) > 0.1


def _attribute(model: Any, op_type: str, name: str, change: Any) -> None:
    node = next(n for n in model.graph if n.op_type == op_type)
    value = change(node.attributes[name].value)
    node.attributes[name] = ir.Attr(name, node.attributes[name].type, value)


def _scale(model: Any) -> None:
    _attribute(model, "Attention", "scale", lambda s: s * 1.01)


def _window(model: Any) -> None:
    _attribute(model, "CausalMask", "window", lambda w: 3)


def _epsilon(model: Any) -> None:
    _attribute(model, "RMSNormalization", "epsilon", lambda e: e * 10)


def _norm_weight(model: Any) -> None:
    value = next(n for n in model.graph if n.op_type == "RMSNormalization").inputs[1]
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.001), name=value.name)


def _table(model: Any) -> None:
    value = model.graph.initializers["rope.sin"]
    value.const_value = ir.tensor(-value.const_value.numpy(), name=value.name)


@pytest.mark.parametrize("change", [_scale, _window, _epsilon, _norm_weight, _table])
@pytest.mark.parametrize(
    "name",
    [
        "qwen3-dynamo-fp32",
        "qwen2-genai-int4",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("llama-dynamo-fp32", "llama-dynamo-fp16")),
    ],
)
def test_a_changed_twin_differs(name: str, change: Any) -> None:
    path = EXPORTS / name / "model.onnx"
    decoder, reference = canonicalise(path, 64), ReferenceModel(path, threads=1)
    change(decoder.model)
    feed = case(decoder.facts, 1, 6, 0)
    expected = reference_outputs(reference, feed)
    actual = CanonicalModel(decoder.model).run(feed)
    assert worst_difference(actual, expected, feed["attention_mask"], 0) > BOUND


@pytest.mark.parametrize("name", NAMES)
def test_form(loaded: dict[str, Any], name: str) -> None:
    decoder, _, _ = get(loaded, name)
    graph, facts = decoder.model.graph, decoder.facts
    caches = [f"{i}.{kind}" for i in range(facts.layers) for kind in ("key", "value")]
    inputs = [v.name for v in graph.inputs]
    assert inputs[0] == "input_ids"
    assert inputs[-len(caches) :] == [f"past_key_values.{c}" for c in caches]
    assert [v.name for v in graph.outputs] == ["logits", *(f"present.{c}" for c in caches)]
    assert all(v.dtype == ir.DataType.FLOAT for v in graph.outputs)
    assert graph.opset_imports[""] == 23
    operators = [n.op_type for n in graph]
    assert operators.count("Attention") == facts.layers
    assert operators.count("RotaryEmbedding") == 2 * facts.layers
    norms = 4 if facts.family == "qwen3" else 2
    assert operators.count("RMSNormalization") == norms * facts.layers + 1
    assert operators.count("CausalMask") == 1
    scales = [n.attributes["scale"].value for n in graph if n.op_type == "Attention"]
    assert scales == pytest.approx([32**-0.5] * facts.layers, rel=1e-3 if "fp16" in name else 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_facts(loaded: dict[str, Any], name: str) -> None:
    facts = get(loaded, name)[0].facts
    family, *_, precision = name.split("-")
    assert (facts.layers, facts.heads, facts.kv_heads, facts.head_dim) == (1 if "drafter" in name else 2, 4, 2, 32)
    assert (facts.hidden, facts.ffn, facts.vocab, facts.context) == (64, 96, 512, 64)
    assert facts.family == family
    assert facts.tied == (family != "llama")
    assert facts.weight_dtype == {"fp32": "float32", "fp16": "float16", "int4": "int4"}[precision]
    assert facts.rope is not None
    assert (facts.rope.rotary_dim, facts.rope.interleaved) == (32, False)
    assert facts.rope.positions == ("past" if name in LENGTHS else "input")
    assert (facts.window, facts.batch) == (0, None)


def test_half_precision_weights_stay_as_they_are_stored(loaded: dict[str, Any]) -> None:
    graph = get(loaded, "llama-dynamo-fp16")[0].model.graph
    matrices = [v.const_value for v in graph.initializers.values() if len(v.const_value.shape) == 2 and v.uses()]
    kinds = {t.dtype for t in matrices if "rope" not in t.name}
    assert kinds == {ir.DataType.FLOAT16}


def test_external_weights_stay_in_their_file(loaded: dict[str, Any]) -> None:
    graph = get(loaded, "llama-genai-fp32")[0].model.graph
    products = [n.inputs[1].const_value for n in graph if n.op_type == "MatMul"]
    assert products
    assert all(isinstance(t, ir.ExternalTensor) for t in products)


def test_tied_quantised_head_and_embedding_share_the_initialiser(loaded: dict[str, Any]) -> None:
    graph = get(loaded, "qwen2-genai-int4")[0].model.graph
    gather = next(n for n in graph if n.op_type == "GatherBlockQuantized")
    head = next(n for n in graph if n.outputs[0].name == "logits")
    assert gather.inputs[0].producer().op_type == "Reshape"
    assert gather.inputs[0].producer().inputs[0] is head.inputs[1]
    assert all(n.attributes["accuracy_level"].value == 0 for n in graph if n.op_type == "MatMulNBits")


def test_log_names_every_pass(loaded: dict[str, Any]) -> None:
    log = {entry.name: entry for entry in get(loaded, "qwen3-dynamo-fp32")[0].log}
    assert log["fuse_rms_norm"].matched == 9  # 4 norms a layer and the last
    assert log["fuse_attention"].matched == 2
    assert not log["fuse_attention"].notes


def test_an_export_that_takes_one_token_after_a_past_says_so(loaded: dict[str, Any]) -> None:
    decoder = get(loaded, "llama-genai-fp16")[0]
    (note,) = next(e for e in decoder.log if e.name == "fuse_attention").notes
    assert note.startswith("the export itself takes one token at a time after a past: ")
    assert "with 3 new and 5 past tokens" in note


def test_context_longer_than_the_tables_of_the_export() -> None:
    with pytest.raises(UserError, match=r"has 256 positions, the context is 300; compile with --context 256 or less"):
        canonicalise(EXPORTS / "llama-genai-fp32" / "model.onnx", 300)


def test_context_of_one() -> None:
    with pytest.raises(UserError, match="a context of 1 tokens: it must be 2 to"):
        canonicalise(EXPORTS / "llama-dynamo-fp32" / "model.onnx", 1)


@pytest.mark.parametrize("context", [2, 3])
def test_shortest_contexts(context: int) -> None:
    decoder = canonicalise(EXPORTS / "llama-drafter-dynamo-fp32" / "model.onnx", context)
    assert decoder.model.graph.initializers["rope.cos"].const_value.shape == (context, 16)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory"), KeyError("x")])
def test_a_lack_of_memory_is_not_taken_for_a_fault_of_the_file(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(imp: Any) -> None:
        raise error

    monkeypatch.setattr("passes.onnx.PIPELINE", (fails,))
    lacking = "model.onnx: fails: out of memory$"
    expected = "can make no sense of the graph" if isinstance(error, KeyError) else lacking
    with pytest.raises(UserError, match=expected):
        canonicalise(EXPORTS / "llama-drafter-dynamo-fp32" / "model.onnx", 64)
