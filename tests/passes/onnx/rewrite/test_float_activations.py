"""Activations that a file rounds to 8 bits become floats again; weights stay as they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from hetero_sd.cli import main
from hetero_sd.reference import ReferenceModel
from hetero_sd.verify import VerifyRequest, verify_bundle
from passes.onnx import canonicalise
from passes.onnx.pass_context import run_pass
from passes.onnx.prove.weight_expression import initializer_of
from passes.onnx.rewrite.float_activations import float_activations
from passes.onnx.testing import case, importing, lines, write_word_tokenizer
from targets.errors import UserError
from tests.support.quantised_exports import MADE, quantised_exports

ROUND = "q, s, z = DynamicQuantizeLinear(x)"
INTEGER = "i = MatMulInteger(q, w, z, wz) c = Cast <to = 1> (i)"
WEIGHTS = "int8[4,2] w = {1,-2,3,4,-5,6,7,127}, float ws = {0.5}, int8 wz = {3}"
IN_A_COLUMN = "int8[4,2] w = {1,-2,3,4,-5,6,7,127}, float[2] ws = {0.5,0.25}, int8[2] wz = {3,-7}"
BIAS = "float[2] b = {1,-1}"


def graph(body: str, weights: str = WEIGHTS, y: str = "float[n,m,2] y") -> Any:
    return importing(f"g (float[n,m,4] x) => ({y}) <{weights}, {BIAS}> {{ {body} }}", opset=21)


def outputs(imp: Any, x: np.ndarray) -> np.ndarray:
    """Of onnxruntime without its optimiser, which makes a rounded product of a MatMul by dequantised weights."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(imp.model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


SPELLINGS = {
    "as quantize_dynamic writes it": f"{ROUND} f = Mul(s, ws) {INTEGER} y = Mul(c, f)",
    "factors the other way": f"{ROUND} f = Mul(ws, s) {INTEGER} y = Mul(f, c)",
    "one scale after the other": f"{ROUND} {INTEGER} d = Mul(c, ws) y = Mul(s, d)",
    "saved at level extended": f"{ROUND} y = com.microsoft.MatMulIntegerToFloat(q, w, s, ws, z, wz)",
    "saved at level extended, alone": "y = com.microsoft.DynamicQuantizeMatMul(x, w, ws, wz)",
}


@pytest.mark.parametrize("weights", [WEIGHTS, IN_A_COLUMN], ids=["one scale", "a scale for each column"])
@pytest.mark.parametrize("body", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_becomes_a_product_of_floats(body: str, weights: str) -> None:
    imp = graph(body, weights)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    rounded = outputs(imp, x)
    assert run_pass(float_activations, imp).matched == 1
    assert [n.op_type for n in imp.graph] == ["DequantizeLinear", "MatMul"]
    assert imp.facts.int8_activations
    w = np.array([[1, -2], [3, 4], [-5, 6], [7, 127]], np.float32)
    weight = (w - [3, -7]) * [0.5, 0.25] if weights == IN_A_COLUMN else (w - 3) * 0.5
    exact = x @ weight.astype(np.float32)
    np.testing.assert_allclose(outputs(imp, x), exact, rtol=1e-6, atol=1e-5)
    assert 1e-3 < np.abs(rounded - exact).max() < 1  # the file's own rounding, which is left out


def test_the_weight_is_the_one_that_is_stored() -> None:
    imp = graph(SPELLINGS["as quantize_dynamic writes it"])
    run_pass(float_activations, imp)
    assert lines(imp.graph) == [
        "w.floats.0 = DequantizeLinear([[1, -2], [3, 4], [-5, 6], [7, 127]], ws, 3) {axis: 1}",
        "y = MatMul(x, w.floats.0)",
    ]


def test_one_zero_point_for_several_scales() -> None:
    weights = IN_A_COLUMN.replace("int8[2] wz = {3,-7}", "int8 wz = {3}")
    imp = graph(SPELLINGS["as quantize_dynamic writes it"], weights)
    run_pass(float_activations, imp)
    node = next(n for n in imp.graph if n.op_type == "DequantizeLinear")
    assert node.inputs[2].const_value.numpy().tolist() == [3, 3]


def test_products_share_the_rounding_and_the_weight() -> None:
    body = (
        f"{ROUND} f = Mul(s, ws) i = MatMulInteger(q, w, z, wz) c = Cast <to = 1> (i) a = Mul(c, f)"
        " j = MatMulInteger(q, w, z, wz) d = Cast <to = 1> (j) e = Mul(d, f) y = Add(a, e)"
    )
    imp = graph(body)
    assert run_pass(float_activations, imp).matched == 2
    assert [n.op_type for n in imp.graph] == ["DequantizeLinear", "MatMul", "MatMul", "Add"]


def test_a_transposed_weight_stays_the_stored_one() -> None:
    weights = "int8[2,4] v = {1,-2,3,4,-5,6,7,127}, float[2] ws = {0.5,0.25}, int8[2] wz = {3,-7}"
    imp = graph("w = Transpose <perm = [1,0]> (v) " + SPELLINGS["as quantize_dynamic writes it"], weights)
    assert run_pass(float_activations, imp).matched == 1
    assert (
        lines(imp.graph)[0] == "v.floats.0 = DequantizeLinear([[1, -2, 3, 4], [-5, 6, 7, 127]], ws, [3, -7]) {axis: 0}"
    )
    assert [n.op_type for n in imp.graph] == ["DequantizeLinear", "Transpose", "MatMul"]


def test_the_bias_of_a_fused_product_is_added() -> None:
    imp = graph("y = com.microsoft.DynamicQuantizeMatMul(x, w, ws, wz, b)")
    run_pass(float_activations, imp)
    assert lines(imp.graph)[-1] == "y = Add(y.matmul, b)"


def test_both_operands_rounded() -> None:
    body = (
        f"{ROUND} k, t, kz = DynamicQuantizeLinear(v) f = Mul(s, t) i = MatMulInteger(q, k, z, kz)"
        " c = Cast <to = 1> (i) y = Mul(c, f)"
    )
    imp = importing(f"g (float[n,m,4] x, float[n,4,m] v) => (float[n,m,m] y) {{ {body} }}")
    assert run_pass(float_activations, imp).matched == 1
    assert lines(imp.graph) == ["y = MatMul(x, v)"]


def test_rows_of_a_weight() -> None:
    """The embedding: taken once, whoever reads it, and read by a product before it is dequantised."""
    body = (
        "r = Gather(t, ids) e = DequantizeLinear(r, ts, tz) f = Mul(ts, ws) i = MatMulInteger(r, w, tz, wz)"
        " c = Cast <to = 1> (i) p = Mul(c, f) d = DequantizeLinear(r, ts, tz) h = MatMul(d, u) y = Add(p, h)"
    )
    table = "uint8[3,4] t = {0,1,2,3,4,5,6,7,8,9,10,255}, float ts = {0.1}, uint8 tz = {5}"
    table += ", float[4,2] u = {1,2,3,4,5,6,7,8}"
    imp = importing(f"g (int64[n,m] ids) => (float[n,m,2] y) <{WEIGHTS}, {table}> {{ {body} }}", opset=21)
    assert run_pass(float_activations, imp).matched == 3
    operators = sorted(n.op_type for n in imp.graph)
    assert operators == ["Add", "DequantizeLinear", "DequantizeLinear", "Gather", "MatMul", "MatMul"]


UNPROVEN = {
    "scale of another": (f"{ROUND} f = Mul(ws, ws) {INTEGER} y = Mul(c, f)", "scales of both operands"),
    "squared": (f"{ROUND} {INTEGER} y = Mul(c, c)", "scales of both operands"),
    "integers used": (f"{ROUND} {INTEGER} f = Mul(s, ws) e = Mul(c, f) y = Add(e, c)", "scales of both operands"),
    "not cast": (f"{ROUND} i = MatMulInteger(q, w, z, wz) y = Cast <to = 6> (i)", "not cast to float32"),
    "no zero point": (
        f"{ROUND} i = MatMulInteger(q, w) c = Cast <to = 1> (i) f = Mul(s, ws) y = Mul(c, f)",
        "another scale or zero point",
    ),
}


@pytest.mark.parametrize(("body", "why"), UNPROVEN.values(), ids=UNPROVEN)
def test_what_is_not_proven_is_left_alone(body: str, why: str) -> None:
    imp = graph(body, y="int32[n,m,2] y" if "to = 6" in body else "float[n,m,2] y")
    before = lines(imp.graph)
    entry = run_pass(float_activations, imp)
    assert entry.matched == 0
    assert any(why in note for note in entry.notes), entry.notes
    assert lines(imp.graph)[-len(before) :] == before


def test_other_graphs_are_left_alone() -> None:
    imp = graph("m = MatMul(x, v) y = Add(m, b)", "float[4,2] v = {1,2,3,4,5,6,7,8}")
    before = lines(imp.graph)
    entry = run_pass(float_activations, imp)
    assert (entry.matched, entry.notes, lines(imp.graph)) == (0, (), before)
    assert not imp.facts.int8_activations


# whole exports; tests/passes/onnx/test_coverage.py compares all of them with the file without its rounding


def path_of(name: str) -> Path:
    return quantised_exports() / name / "model.onnx"


@pytest.mark.parametrize("name", ["llama-ort-dynamic-uint8", "llama-ort-dynamic-int8-reduced"])
def test_close_to_the_file_as_it_is(name: str) -> None:
    """Both ways of rounding are that close to each other and to none at all; another weight is far off."""
    session = onnxruntime.InferenceSession(str(path_of(name)), providers=["CPUExecutionProvider"])
    facts = canonicalise(path_of(name), 32).facts
    feed = case(facts, 1, 6, 0)
    names = {v.name: next(n for n in feed if n.split(".")[-2:] == v.name.split(".")[-2:]) for v in session.get_inputs()}
    expected = session.run(None, {own: feed[n] for own, n in names.items()})[0]
    caches = {n: x for n, x in feed.items() if n.startswith("past")}

    def apart(activations: str) -> float:
        model = ReferenceModel(path_of(name), threads=1, activations=activations)
        logits = model.run(feed["input_ids"], caches)["logits"]
        return float(np.abs(logits - expected).max() / np.abs(expected).max())

    assert 1e-4 < apart("float") < 0.1
    assert 1e-4 < apart("int8") < 0.1


def test_int8_activations_round_the_reference() -> None:
    """Rounded and not rounded differ by far more than float32 sums do, in products of both K and of the tied head."""
    path = path_of("qwen2-ort-dynamic-uint8")
    feed = np.random.default_rng(0).integers(0, 512, (1, 6))
    caches = {
        f"past_key_values.{i}.{kind}": np.zeros((1, 2, 0, 32), np.float32) for i in (0, 1) for kind in ("key", "value")
    }
    exact, rounded = (
        ReferenceModel(path, threads=1, activations=a).run(feed, caches)["logits"] for a in ("float", "int8")
    )
    assert 1e-3 < np.abs(exact - rounded).max() / np.abs(exact).max() < 0.1


@pytest.mark.parametrize("name", ["llama-ort-dynamic-int8-per-channel", "llama-ort-dynamic-uint8"])
def test_weights_are_those_of_the_file_bit_for_bit(name: str) -> None:
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path_of(name)).graph.initializer}
    decoder = canonicalise(path_of(name), 32)
    assert decoder.facts.int8_activations
    products = [n for n in decoder.model.graph if n.op_type == "MatMulNBits"]
    assert len(products) == 15
    for node in products:
        assert node.attributes["accuracy_level"].value == 0
        k, n = node.attributes["K"].value, node.attributes["N"].value
        source = initializer_of(node.inputs[1]).name.split(".floats.")[0]
        weight, scale = stored[source], stored[source.replace("_quantized", "_scale")]
        shift = np.int16(128 if weight.dtype == np.int8 else 0)
        q = initializer_of(node.inputs[1]).const_value.numpy().reshape(n, -1)[:, :k]
        assert np.array_equal(q.T, weight.astype(np.int16) + shift)
        assert np.array_equal(initializer_of(node.inputs[2]).const_value.numpy().reshape(-1), scale + np.zeros(n, "f4"))
        zero = stored[source.replace("_quantized", "_zero_point")]
        assert (len(node.inputs) > 3) == bool((zero + shift != 128).any())  # the middle of the range is left out


@pytest.mark.parametrize(
    ("operator", "advice"),
    [("QLinearMatMul", r"quant_format=QuantFormat\.QDQ"), ("QAttention", r"op_types_to_quantize=\['MatMul', ")],
)
def test_a_file_with_operators_of_integers_is_refused_with_the_option(
    tmp_path: Path, operator: str, advice: str
) -> None:
    proto = onnx.load(path_of("llama-ort-dynamic-uint8"))
    node = next(n for n in proto.graph.node if n.op_type == "MatMulInteger")
    node.op_type, node.domain = operator, "com.microsoft" if operator == "QAttention" else ""
    inputs = list(node.input)
    scale = next(n for n in proto.graph.node if n.op_type == "DynamicQuantizeLinear").output[1]
    node.input[:] = [inputs[0], scale, inputs[2], inputs[1], scale, inputs[3], scale, inputs[2]]
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=rf"{operator} .*{advice}") as caught:
        canonicalise(tmp_path / "model.onnx", 32)
    assert "\n" not in str(caught.value)


def test_every_made_export_has_an_export_it_is_made_of() -> None:
    assert {p.name for p in quantised_exports().iterdir() if p.is_dir()} == set(MADE)


@pytest.mark.slow
def test_compiled_with_int8_activations_and_verified(tmp_path: Path) -> None:
    """The default for such a file; of its products one has K = 48, which is no whole number of steps of 32 values."""
    bundle, path = tmp_path / "bundle", path_of("gpt2-ort-dynamic-int8-per-channel")
    write_word_tokenizer(tmp_path, canonicalise(path, 32).facts.vocab)
    command = ["compile", str(path), "--board", "host", "--tokenizer", str(tmp_path), "--eos", "1", "--context", "48"]
    assert main([*command, "--out", str(bundle)]) == 0
    assert '"activations": "int8"' in (bundle / "manifest.json").read_text()
    assert verify_bundle(VerifyRequest(bundle, path)).passed
    proto = onnx.load(path)
    scale = next(t for t in proto.graph.initializer if t.name.endswith("_scale") and list(t.dims) == [32])
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1.3), scale.name))
    onnx.save(proto, tmp_path / "other.onnx")  # the negative control
    assert not verify_bundle(VerifyRequest(bundle, tmp_path / "other.onnx")).passed
