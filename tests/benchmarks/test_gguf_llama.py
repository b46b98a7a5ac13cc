"""benchmarks/gguf_llama.py: the GGUF file has the weights of the ONNX file, by gguf's own reader."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from requirements import need

from passes.synthetic import LlamaShape, write_llama

ROOT = Path(__file__).resolve().parents[2]
SHAPE = LlamaShape(layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, vocab=32, context=32)
TYPES = {"int4": "Q4_0", "int8": "Q8_0", "float16": "F16", "float32": "F32"}


@pytest.mark.parametrize("dtype", TYPES)
def test_weights_are_the_same(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(importlib.util.find_spec("gguf"), "no package gguf", "pip install '.[chat]'")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gguf
    from gguf_llama import write_gguf

    model = tmp_path / "model.onnx"
    write_llama(model, SHAPE, dtype)
    write_gguf(model, SHAPE, tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    tensors = {t.name: t for t in reader.tensors}
    found = {name: gguf.dequantize(t.data, t.tensor_type) for name, t in tensors.items()}
    matrices = {name for name in tensors if "norm" not in name and name != "token_embd.weight"}
    assert {tensors[name].tensor_type.name for name in matrices} == {TYPES[dtype]}
    graph = onnx.load(model, load_external_data=False).graph
    stored = {t.name: onnx.numpy_helper.to_array(t, str(tmp_path)) for t in graph.initializer}
    qkv, head = (expected(stored, name) for name in ("layers.1.qkv", "head"))
    np.testing.assert_array_equal(found["output.weight"], head)
    np.testing.assert_array_equal(found["blk.1.attn_v.weight"], qkv[64 + 32 :])
    # Of a head of 16, llama.cpp rotates rows 0 and 1, the ONNX file rows 0 and 8.
    order = [head + i // 2 + i % 2 * 8 for head in range(0, 64, 16) for i in range(16)]
    np.testing.assert_array_equal(found["blk.1.attn_q.weight"], qkv[:64][order])
    assert not np.array_equal(found["blk.1.attn_q.weight"], qkv[:64])
    np.testing.assert_array_equal(found["blk.1.ffn_down.weight"], expected(stored, "layers.1.down"))
    for name, of_onnx in (("output_norm", "final_norm"), ("blk.1.attn_norm", "layers.0.next_norm")):
        np.testing.assert_array_equal(found[f"{name}.weight"], stored[of_onnx])
    assert len(tensors) == 3 + 9 * SHAPE.layers


def test_its_vocabulary_has_the_numbers_of_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the server, which writes texts; without one there are no tokens in the file."""
    need(importlib.util.find_spec("gguf"), "no package gguf", "pip install '.[chat]'")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gguf
    from gguf_llama import write_gguf

    model, path = tmp_path / "model.onnx", tmp_path / "model.gguf"
    write_llama(model, SHAPE, "int8")
    found = {}
    for vocabulary in (True, False):
        write_gguf(model, SHAPE, path, vocabulary)
        fields = gguf.GGUFReader(path).fields
        tokens = fields.get("tokenizer.ggml.tokens")
        found[vocabulary] = fields["tokenizer.ggml.model"].contents(), tokens and tokens.contents()
    assert found == {True: ("llama", [f"\u2581{i}" for i in range(SHAPE.vocab)]), False: ("none", None)}


def expected(stored: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A matrix [outputs, inputs] as GGUF can store it: with scales of float16."""
    if f"{name}.weight" in stored:
        return stored[f"{name}.weight"].T.astype(np.float32)
    q = stored[f"{name}.q"]
    codes = q.astype(np.float32) - 128 if q.shape[-1] == 32 else np.stack([q & 15, q >> 4], -1).astype(np.float32) - 8
    scale = stored[f"{name}.scale"].astype(np.float16).astype(np.float32)
    return (codes.reshape(*scale.shape, 32) * scale[..., None]).reshape(len(q), -1)
