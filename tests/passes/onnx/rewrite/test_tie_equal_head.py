"""A head that an exporter wrote a second time is stored once, and only where it is the embedding bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from hetero_sd.reference import ReferenceModel
from passes.onnx import Decoder, canonicalise
from passes.onnx.testing import CanonicalModel, case, worst_difference

DATA = Path(__file__).parents[3] / "data"


def duplicated(source: Path, path: Path, change: Callable[[np.ndarray], np.ndarray] | None = None) -> Path:
    """An export whose head reads a transposed copy of the embedding, as constant folding leaves it."""
    model = onnx.load(source)
    tensors = {t.name: t for t in model.graph.initializer}
    embedding = next(
        n.input[0]
        for n in model.graph.node
        if n.op_type == "Gather" and n.input[0] in tensors and "input_ids" in n.input
    )
    head = next(n for n in reversed(model.graph.node) if n.op_type == "MatMul")
    numbers = onnx.numpy_helper.to_array(tensors[embedding]).T.copy()
    if change is not None:
        numbers = change(numbers)
    old = head.input[1]
    head.input[1] = "folded_head"
    model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, "folded_head"))
    if old in tensors and not any(old in n.input for n in model.graph.node):
        model.graph.initializer.remove(tensors[old])
    onnx.save(model, path)
    return path


def nudged(numbers: np.ndarray) -> np.ndarray:
    numbers[-1, -1] = np.nextafter(numbers[-1, -1], numbers.dtype.type(np.inf))
    return numbers


def entry(decoder: Decoder) -> int:
    return next(e.matched for e in decoder.log if e.name == "tie_equal_head")


@pytest.mark.parametrize(
    "source", ["exports/llama-dynamo-fp32", "exports/llama-dynamo-fp16", "families/llama-optimum-fp32"]
)
def test_the_head_reads_the_embedding(tmp_path: Path, source: str) -> None:
    path = duplicated(DATA / source / "model.onnx", tmp_path / "model.onnx")
    decoder = canonicalise(path, 64)
    assert entry(decoder) == 1
    assert decoder.facts.tied
    assert "folded_head" not in _stored(decoder)
    feed = case(decoder.facts, 1, 4, 5)
    past = {n: x for n, x in feed.items() if n.startswith("past")}
    expected = ReferenceModel(path).run(feed["input_ids"], past, feed["attention_mask"], feed["position_ids"])
    assert worst_difference(CanonicalModel(decoder.model).run(feed), expected, feed["attention_mask"], 5) < 1e-5


def _stored(decoder: Decoder) -> set[str]:
    return {name for name, value in decoder.model.graph.initializers.items() if value.uses()}


def test_one_bit_makes_another_head(tmp_path: Path) -> None:
    path = duplicated(DATA / "exports/llama-dynamo-fp32/model.onnx", tmp_path / "model.onnx", nudged)
    decoder = canonicalise(path, 64)
    assert entry(decoder) == 0
    assert not decoder.facts.tied
    assert "folded_head" in _stored(decoder)


def test_minus_zero_is_not_zero(tmp_path: Path) -> None:
    """Bit for bit: the numbers compare equal, the bits do not."""

    def zeros(sign: float) -> Callable[[np.ndarray], np.ndarray]:
        def change(numbers: np.ndarray) -> np.ndarray:
            numbers[0, 0] = sign * 0.0
            return numbers

        return change

    base = onnx.load(DATA / "exports/llama-dynamo-fp32/model.onnx")
    for tensor in base.graph.initializer:
        if "embed_tokens" in tensor.name:
            numbers = onnx.numpy_helper.to_array(tensor).copy()
            numbers[0, 0] = 0.0
            tensor.CopyFrom(onnx.numpy_helper.from_array(numbers, tensor.name))
    onnx.save(base, tmp_path / "base.onnx")
    for sign, expected in ((1.0, 1), (-1.0, 0)):
        path = duplicated(tmp_path / "base.onnx", tmp_path / "model.onnx", zeros(sign))
        assert entry(canonicalise(path, 64)) == expected


def test_optimums_own_export_is_one() -> None:
    assert entry(canonicalise(DATA / "families/smollm-optimum-fp32/model.onnx", 64)) == 1


def test_an_export_that_is_tied_already_or_not_at_all_is_left_alone() -> None:
    for source in ("exports/llama-dynamo-fp32", "exports/qwen3-dynamo-fp32"):
        assert entry(canonicalise(DATA / source / "model.onnx", 64)) == 0


@pytest.mark.slow
def test_a_bundle_holds_the_matrix_once(tmp_path: Path) -> None:
    from hetero_sd.cli import main

    source, sizes = DATA / "exports/llama-dynamo-fp32/model.onnx", []
    for model in (duplicated(source, tmp_path / "same.onnx"), duplicated(source, tmp_path / "other.onnx", nudged)):
        out = tmp_path / f"{model.stem}-bundle"
        tokenizer = str(DATA / "exports/llama-dynamo-fp32")
        given = ["--tokenizer", tokenizer, "--board", "host", "--context", "64", "--out", str(out)]
        assert main(["compile", str(model), *given]) == 0
        sizes.append((out / "weights" / "target.safetensors").stat().st_size)
    vocab, width = 512, 64
    assert sizes[1] - sizes[0] >= vocab * width * 4
