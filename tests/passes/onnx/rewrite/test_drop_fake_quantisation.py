"""Static rounding of activations (QDQ) is taken out, weights stay, what is not proven stays with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hetero_sd.cli import main
from hetero_sd.reference import ReferenceModel
from hetero_sd.verify import VerifyRequest, verify_bundle
from passes.onnx import canonicalise
from passes.onnx.pass_context import run_pass
from passes.onnx.rewrite.drop_fake_quantisation import drop_fake_quantisation
from passes.onnx.testing import case, importing, lines, write_word_tokenizer
from targets.errors import UserError
from tests.support.quantised_exports import MATRICES, quantised_exports, source_of, static

CONSTANTS = (
    "float s = {0.5}, float t = {0.25}, uint8 z = {3}, uint8 y = {4}, uint16 l = {3}, float[4] v = {1,2,3,4}, "
    "uint8[4] vz = {1,2,3,4}, float[4,2] w = {1,2,3,4,5,6,7,8}, float[4,2] ws = {1,2,3,4,5,6,7,8}"
)


def graph(body: str, opset: int = 21) -> object:
    return importing(f"g (float[n,m,4] x) => (float[n,m,4] o) <{CONSTANTS}> {{ {body} }}", opset=opset)


@pytest.mark.parametrize(
    "body",
    [
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) o = Neg(d)",
        "q = com.microsoft.QuantizeLinear(x, s, z) d = com.microsoft.DequantizeLinear(q, s, z) o = Neg(d)",
        "q = QuantizeLinear(x, s) d = DequantizeLinear(q, s) o = Neg(d)",
        "q = QuantizeLinear <axis = 2> (x, v, vz) d = DequantizeLinear <axis = 2> (q, v, vz) o = Neg(d)",
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) "
        "r = QuantizeLinear(d, t, z) e = DequantizeLinear(r, t, z) o = Neg(e)",
    ],
    ids=["as quantize_static writes it", "com.microsoft", "no zero point", "along an axis", "twice"],
)
def test_a_pair_with_the_same_scale_is_nothing(body: str) -> None:
    imp = graph(body)
    assert run_pass(drop_fake_quantisation, imp).matched == body.count("DequantizeLinear")
    assert lines(imp.graph) == ["o = Neg(x)"]
    assert imp.facts.int8_activations
    assert not imp.facts.rounded_constants


def test_activations_of_16_bits_do_not_allow_8() -> None:
    imp = graph("q = QuantizeLinear(x, s, l) d = DequantizeLinear(q, s, l) o = Neg(d)")
    assert run_pass(drop_fake_quantisation, imp).matched == 1
    assert lines(imp.graph) == ["o = Neg(x)"]
    assert not imp.facts.int8_activations


UNPROVEN = {
    "another scale": ("q = QuantizeLinear(x, s, z) o = DequantizeLinear(q, t, z)", "with another"),
    "another zero point": ("q = QuantizeLinear(x, s, z) o = DequantizeLinear(q, s, y)", "with another"),
    "a zero point left out": ("q = QuantizeLinear(x, s, z) o = DequantizeLinear(q, s)", "with another"),
    "another axis": (
        "q = QuantizeLinear <axis = 2> (x, v, vz) o = DequantizeLinear <axis = 1> (q, v, vz)",
        "along another",
    ),
    "a computed scale": ("c = Neg(s) q = QuantizeLinear(x, c) o = DequantizeLinear(q, c)", "with another"),
    "a weight": (
        "q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) p = MatMul(x, d) o = Concat <axis = -1> (p, p)",
        "add_qdq_pair_to_weight=False",
    ),
}


@pytest.mark.parametrize(("body", "why"), UNPROVEN.values(), ids=UNPROVEN)
def test_what_is_not_proven_is_left_alone(body: str, why: str) -> None:
    imp = graph(body)
    before = lines(imp.graph)
    entry = run_pass(drop_fake_quantisation, imp)
    assert entry.matched == 0
    assert any(why in note for note in entry.notes), entry.notes
    assert lines(imp.graph) == before
    assert not imp.facts.int8_activations


def test_dequantised_weights_are_left_alone() -> None:
    imp = importing(
        "g (float[n,m,4] x) => (float[n,m,2] o) <int8[4,2] w = {1,2,3,4,5,6,7,8}, float s = {0.5}>"
        " { d = DequantizeLinear(w, s) o = MatMul(x, d) }"
    )
    before = lines(imp.graph)
    entry = run_pass(drop_fake_quantisation, imp)
    assert (entry.matched, entry.notes, lines(imp.graph)) == (0, (), before)


def path_of(name: str) -> Path:
    return quantised_exports() / name / "model.onnx"


def test_close_to_the_file_as_it_is() -> None:
    """What the pass leaves out is of the size of rounding to 8 bits with a scale from three short texts."""
    name = "llama-ort-static-uint8"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path_of(name)), options, providers=["CPUExecutionProvider"])
    feed = case(canonicalise(path_of(name), 32).facts, 1, 6, 0)
    names = {v.name: next(n for n in feed if n.split(".")[-2:] == v.name.split(".")[-2:]) for v in session.get_inputs()}
    expected = session.run(None, {own: feed[n] for own, n in names.items()})[0]
    caches = {n: x for n, x in feed.items() if n.startswith("past")}
    logits = ReferenceModel(path_of(name), threads=1).run(feed["input_ids"], caches)["logits"]
    assert 1e-4 < np.abs(logits - expected).max() / np.abs(expected).max() < 0.3


def test_a_rounded_table_of_16_bits_is_refused_alone(tmp_path: Path) -> None:
    """The same rounding without the embedding imports: activations are floats, and int8 is not the default."""
    path = tmp_path / "model.onnx"
    static(activations="uint16", operators=MATRICES[:2])(source_of("llama-dynamo-fp32"), path)
    facts = canonicalise(path, 32).facts
    assert (facts.weight_dtype, facts.int8_activations) == ("int8", False)
    with pytest.raises(UserError, match="UINT16"):
        canonicalise(path_of("llama-ort-static-16-bit"), 32)


@pytest.mark.slow
def test_compiled_with_int8_activations_and_verified(tmp_path: Path) -> None:
    bundle, path = tmp_path / "bundle", path_of("qwen2-ort-static-int8")
    write_word_tokenizer(tmp_path, canonicalise(path, 32).facts.vocab)
    command = ["compile", str(path), "--board", "host", "--tokenizer", str(tmp_path), "--eos", "1", "--context", "48"]
    assert main([*command, "--out", str(bundle)]) == 0
    assert '"activations": "int8"' in (bundle / "manifest.json").read_text()
    assert verify_bundle(VerifyRequest(bundle, path)).passed
    proto = onnx.load(path)
    norm = next(t for t in proto.graph.initializer if t.name.endswith("norm.weight"))
    norm.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(norm) * np.float32(1.3), norm.name))
    onnx.save(proto, tmp_path / "other.onnx")  # the negative control
    assert not verify_bundle(VerifyRequest(bundle, tmp_path / "other.onnx")).passed
