"""The reference of a quantised bundle: floats that codes and scales stand for, in the exporter's own graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hetero_sd.reference import ReferenceModel
from passes.onnx.load.load import load
from passes.onnx.pass_context import Importing, run_pass
from passes.onnx.quantise.recipe import Recipe, block_format
from passes.onnx.quantise.scales import codes_of, floats_of, scales_of
from passes.onnx.rewrite.fake_quantise import fake_block, fake_quantise
from passes.onnx.rewrite.normalise_io_names import normalise_io_names

PATH = Path(__file__).parents[3] / "data" / "exports" / "llama-dynamo-fp32" / "model.onnx"
RECIPE = Recipe(block_format("int4", 32), block_format("int8", 32), block_format("int8", 32))
IDS = list(range(3, 11))


def changed_file(path: Path, factor: float = 1.0) -> Path:
    """The export with every matrix rounded by hand, times a factor."""
    model = onnx.load(PATH)
    reads = {n.input[1]: "int4" for n in model.graph.node if n.op_type == "MatMul"}
    logits = next(n for n in model.graph.node if "logits" in n.output)
    for tensor in model.graph.initializer:
        if len(tensor.dims) != 2:
            continue
        axis = 0 if tensor.name in reads else 1
        bits = 8 if axis == 1 or tensor.name in logits.input else 4
        w = onnx.numpy_helper.to_array(tensor)
        scales = scales_of(w, bits, 32, axis)
        floats = floats_of(codes_of(w, scales, bits, 32, axis), scales, 32, axis) * np.float32(factor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(floats, tensor.name))
    onnx.save(model, path)
    return path


def test_the_reference_is_the_file_with_rounded_weights(tmp_path: Path) -> None:
    expected = ReferenceModel(changed_file(tmp_path / "model.onnx"), threads=1).forward(IDS)
    found = ReferenceModel(PATH, threads=1, recipe=RECIPE).forward(IDS)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    control = ReferenceModel(changed_file(tmp_path / "control.onnx", 1.001), threads=1).forward(IDS)
    assert np.abs(control - expected).max() > 1e-4 * np.abs(expected).max()
    assert np.abs(ReferenceModel(PATH, threads=1).forward(IDS) - expected).max() > 0.1


def test_activations_are_rounded_as_for_quantised_weights() -> None:
    exact = ReferenceModel(PATH, threads=1, recipe=RECIPE).forward(IDS)
    rounded = ReferenceModel(PATH, threads=1, recipe=RECIPE, activations="int8").forward(IDS)
    assert 1e-3 < np.abs(rounded - exact).max() < 0.5
    plain = ReferenceModel(PATH, threads=1, activations="int8").forward(IDS)  # floats: nothing is rounded
    assert np.array_equal(plain, ReferenceModel(PATH, threads=1).forward(IDS))


def test_blocks_are_known_by_their_weights() -> None:
    imp = Importing(load(PATH), 1, recipe=RECIPE)
    run_pass(normalise_io_names, imp)
    matmuls = [node for node in imp.graph if node.op_type == "MatMul"]
    assert all(fake_block(node) == (0, 0) for node in matmuls)
    assert run_pass(fake_quantise, imp).matched == 16
    blocks = [fake_block(node) for node in imp.graph if node.op_type == "MatMul"]
    assert set(blocks) - {(0, 0)} == {(64, 32), (96, 32), (128, 32)}


def test_weights_of_the_reference_lie_outside_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message of protobuf holds 2 GiB; onnxruntime gets the matrices beside it."""
    sizes = []
    session = onnxruntime.InferenceSession

    def measured(content: bytes, *more: object, **named: object) -> object:
        sizes.append(len(content))
        return session(content, *more, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", measured)
    model = ReferenceModel(PATH, threads=1, recipe=RECIPE)
    held = [value.numpy() for value in model._session.held.values()]
    assert len(held) == 16
    assert sizes[0] < sum(x.nbytes for x in held) / 2
