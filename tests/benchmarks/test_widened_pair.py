"""benchmarks/widened_pair.py: what the trained drafter says, a wider and deeper one says, too."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import widened_pair
from widened_pair import PAIR, TRAINED, Widened

from passes.synthetic import write_llama

IDS = [1, 700, 45, 1200, 9, 3, 88, 1500]


def logits(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path))
    given: dict[str, np.ndarray] = {"input_ids": np.array([IDS]), "attention_mask": np.ones((1, len(IDS)), np.int64)}
    for put in session.get_inputs():
        if put.name == "position_ids":
            given[put.name] = np.arange(len(IDS))[None]
        elif put.name not in given:
            kind = np.float16 if "16" in put.type else np.float32
            given[put.name] = np.zeros((1, put.shape[1], 0, put.shape[3]), kind)
    found: np.ndarray = session.run(["logits"], given)[0].astype(np.float32)
    return found


def test_says_what_the_trained_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, shape = PAIR / "draft" / "model.onnx", TRAINED["draft"]
    weights, trained = widened_pair.trained(path, shape.layers), logits(path)

    def off(added: int) -> float:
        wide = Widened(weights, shape, copies=2, added=added, seed=1)
        write_llama(tmp_path / "wide.onnx", wide.shape, given=wide)
        return float(np.abs(logits(tmp_path / "wide.onnx") - trained).max())

    assert np.abs(trained).max() > 5
    assert off(added=0) < 0.1  # the trained one computes in float16
    assert 0.01 < off(added=1) < 0.5
    monkeypatch.setattr(widened_pair, "_ADDED_SCALE", 1.0)
    assert off(added=1) > 2  # what is added is computed


def test_no_two_units_are_alike() -> None:
    shape = TRAINED["draft"]
    weights = widened_pair.trained(PAIR / "draft" / "model.onnx", shape.layers)
    wide = Widened(weights, shape, copies=2, added=1, seed=1)
    assert (wide.shape.hidden, wide.shape.heads, wide.shape.head_dim) == (320, 8, 32)
    gate = wide("layers.0.gate.weight", (320, 1024))
    assert gate.shape == (320, 1024)
    assert np.abs(gate[:, :512] - gate[:, 512:]).max() > 0.1 * np.abs(gate).max()
    sums = gate[:160] + gate[160:]
    assert np.allclose(sums[:, :512], sums[:, 512:], atol=1e-5)
    assert np.allclose(sums[:, :512], weights["0.gate"], atol=1e-5)
