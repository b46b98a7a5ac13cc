"""The float32 reference: runs every export, chunks and caches change nothing, other weights are noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hetero_sd import reference
from hetero_sd.quantisation.recipes import Quantisation
from hetero_sd.reference import Cache, ReferenceModel
from targets.errors import UserError

EXPORTS = Path(__file__).parents[1] / "data" / "exports"
NAMES = sorted(p.name for p in EXPORTS.iterdir())
IDS = np.random.default_rng(0).integers(0, 512, 12)


@pytest.mark.parametrize("name", NAMES)
def test_runs_every_export(name: str) -> None:
    model = ReferenceModel(EXPORTS / name / "model.onnx", threads=1)
    logits = model.forward(IDS)
    assert logits.shape == (12, 512)
    assert logits.dtype == np.float32
    assert 1 < np.abs(logits).max() < 20


@pytest.mark.parametrize("name", NAMES)
def test_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ReferenceModel(EXPORTS / name / "model.onnx", threads=1)
    whole = model.forward(IDS)
    monkeypatch.setattr(reference, "_CHUNK", 5)  # 12 tokens = 5 + 5 + 2, or 5 and then one by one
    assert np.abs(model.forward(IDS) - whole).max() < 1e-4


def test_the_cache_goes_on_from_where_it_was() -> None:
    model = ReferenceModel(EXPORTS / "llama-dynamo-fp32" / "model.onnx", threads=1)
    whole, cache = model.forward(IDS), Cache()
    first = model.forward(IDS[:7], cache)
    assert cache.length == 7
    second = model.forward(IDS[7:], cache)
    assert cache.length == 12
    assert np.abs(np.concatenate([first, second]) - whole).max() < 1e-4
    assert np.abs(model.forward(IDS[7:]) - whole[7:]).max() > 0.1  # without the cache it is another text


def test_float32_export_is_run_as_it_is() -> None:
    """The reference adds nothing: the plain file in onnxruntime gives the same bits."""
    path = EXPORTS / "llama-dynamo-fp32" / "model.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    empty = np.zeros((1, 2, 0, 32), np.float32)
    feed = {v.name: empty for v in session.get_inputs()}
    feed |= {"input_ids": IDS[None], "attention_mask": np.ones((1, 12), np.int64), "position_ids": np.arange(12)[None]}
    plain = session.run(["logits"], feed)[0][0]
    assert np.array_equal(ReferenceModel(path, threads=1).forward(IDS), plain)


def test_half_precision_is_computed_in_float32() -> None:
    """float16 weights differ from the float32 ones by rounding only; the float16 graph itself is further away."""
    path = EXPORTS / "llama-dynamo-fp16" / "model.onnx"
    exact = ReferenceModel(EXPORTS / "llama-dynamo-fp32" / "model.onnx", threads=1).forward(IDS)
    upcast = ReferenceModel(path, threads=1).forward(IDS)
    assert 1e-5 < np.abs(upcast - exact).max() < 0.02
    rounded = upcast.astype(np.float16).astype(np.float32)
    assert not np.array_equal(upcast, rounded)


def test_another_weight_gives_other_logits(tmp_path: Path) -> None:
    path = EXPORTS / "llama-dynamo-fp32" / "model.onnx"
    proto = onnx.load(path)
    norm = next(t for t in proto.graph.initializer if t.name.endswith("norm.weight"))
    changed = onnx.numpy_helper.to_array(norm) * np.float32(1.001)
    norm.CopyFrom(onnx.numpy_helper.from_array(changed, norm.name))
    onnx.save(proto, tmp_path / "model.onnx")
    control = ReferenceModel(tmp_path / "model.onnx", threads=1).forward(IDS)
    assert np.abs(control - ReferenceModel(path, threads=1).forward(IDS)).max() > 1e-4


def test_block_quantised_products_keep_their_activations(tmp_path: Path) -> None:
    """accuracy_level 4 would round activations to int8; the reference takes 0, and the difference shows."""
    path = EXPORTS / "llama-genai-int4" / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    empty = np.zeros((1, 2, 0, 32), np.float32)
    feed = {v.name: empty for v in session.get_inputs()}
    feed |= {"input_ids": IDS[None], "attention_mask": np.ones((1, 12), np.int64)}
    rounded = session.run(["logits"], feed)[0][0]
    exact = ReferenceModel(path, threads=1).forward(IDS)
    assert 1e-3 < np.abs(rounded - exact).max() < 1.0


def test_no_tokens() -> None:
    with pytest.raises(UserError, match="no tokens"):
        ReferenceModel(EXPORTS / "llama-dynamo-fp32" / "model.onnx").forward([])


def test_token_outside_the_vocabulary() -> None:
    with pytest.raises(UserError, match="onnxruntime cannot run it"):
        ReferenceModel(EXPORTS / "llama-dynamo-fp32" / "model.onnx").forward([512])


def test_missing_file() -> None:
    with pytest.raises(UserError, match="there is no such file"):
        ReferenceModel(Path("nowhere.onnx"))


def test_operator_nobody_has(tmp_path: Path) -> None:
    proto = onnx.load(EXPORTS / "llama-dynamo-fp32" / "model.onnx")
    proto.graph.node[-1].op_type = "Unheard"
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="Unheard"):
        ReferenceModel(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["llama-dynamo-fp32", "qwen2-dynamo-fp32", "qwen3-genai-fp32"])
@pytest.mark.parametrize("quantise", [None, "int8"])
def test_a_lean_model_has_the_same_logits(name: str, quantise: str | None) -> None:
    """Heads that are a transposed embedding, and weights that are computed here: neither is copied."""
    path = EXPORTS / name / "model.onnx"
    recipe = Quantisation.of(quantise, None, None, ["target"]).recipes.get("target")
    expected = ReferenceModel(path, threads=1, recipe=recipe).forward(IDS)
    lean = ReferenceModel(path, threads=1, recipe=recipe, lean=True)
    found = np.concatenate(list(lean.rows(IDS, 2)))
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(found[:-1] - expected[1:]).max() > 0.1  # the negative control
    assert bool(lean._session.fed) == (quantise is not None)
