"""Which matrices of an export a recipe quantises, what is stored of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from passes.onnx import canonicalise
from passes.onnx.load.load import load
from passes.onnx.pass_context import Importing, run_pass
from passes.onnx.quantise.quantised_matrix import QuantisedMatrix, quantised_matrices
from passes.onnx.quantise.recipe import EMBEDDING, HEAD, LAYER, Recipe, block_format
from passes.onnx.quantise.scales import codes_of, scales_of
from passes.onnx.rewrite.normalise_io_names import normalise_io_names
from passes.onnx.rewrite.upcast_to_float32 import upcast_to_float32
from targets.errors import UserError

EXPORTS = Path(__file__).parents[3] / "data" / "exports"
INT4, INT8 = block_format("int4", 32), block_format("int8", 32)
RECIPE = Recipe(INT4, INT8, INT8)


def found(path: Path, recipe: Recipe = RECIPE) -> list[QuantisedMatrix]:
    imp = Importing(load(path), 1, recipe=recipe)
    for run in (normalise_io_names, upcast_to_float32):
        run_pass(run, imp)
    return quantised_matrices(imp)


@pytest.mark.parametrize(
    ("name", "layers", "tables"),
    [
        ("llama-dynamo-fp32", 14, [{EMBEDDING}, {HEAD}]),
        ("llama-dynamo-fp16", 14, [{EMBEDDING}, {HEAD}]),
        ("llama-genai-fp16", 14, [{EMBEDDING}, {HEAD}]),
        ("qwen2-dynamo-fp32", 14, [{EMBEDDING, HEAD}]),
        ("qwen3-genai-fp32", 10, [{EMBEDDING, HEAD}]),  # q, k and v packed; rows are taken of the head, transposed
    ],
)
def test_every_matrix_is_found(name: str, layers: int, tables: list[set[str]]) -> None:
    roles = [matrix.matrix.roles for matrix in found(EXPORTS / name / "model.onnx")]
    assert roles.count({LAYER}) == layers
    assert sorted((r for r in roles if r != {LAYER}), key=sorted) == tables


def test_what_is_stored_of_a_transposed_table() -> None:
    """Rows are taken of [vocab, width], so that this is how it is stored, whatever the file has."""
    (table,) = (m for m in found(EXPORTS / "qwen3-genai-fp32" / "model.onnx") if EMBEDDING in m.matrix.roles)
    numbers = table.matrix.weight.const_value.numpy().copy()
    assert numbers.shape == (64, 512)
    assert (table.shape, table.scale_shape, table.axis) == ((512, 64), (512, 2), 1)
    scales = scales_of(numbers, 8, 32, 0)
    assert np.array_equal(table.scales(), scales.T)
    assert np.array_equal(table.codes(), codes_of(numbers, scales, 8, 32, 0).T)
    expected = table.codes() * np.repeat(table.scales().astype(np.float32), 32, 1)
    assert np.array_equal(table.floats(), expected)
    assert 0 < np.abs(table.floats() - numbers.T).max() < 0.01 * np.abs(numbers).max()


def test_scales_are_searched_once() -> None:
    remembered: dict = {}
    (first, *_) = found(EXPORTS / "llama-dynamo-fp32" / "model.onnx")
    again = QuantisedMatrix(first.matrix, first.format, remembered)
    scales = again.scales()
    assert next(iter(remembered.values())) is scales
    remembered[again.name, again.format] = scales * 2
    assert np.array_equal(QuantisedMatrix(first.matrix, first.format, remembered).scales(), scales * 2)


@pytest.mark.parametrize(
    ("name", "recipe", "message"),
    [
        ("qwen2-genai-int4", RECIPE, "there are no float weights to quantise: leave --quantise out"),
        (
            "llama-dynamo-fp32",
            Recipe(block_format("int4", 128), INT8, INT8),
            "64 products.* 128 .*take int4:64",
        ),
        (
            "llama-dynamo-fp32",
            Recipe(INT4, INT8, INT8, (("*nothing*", INT8),)),
            r"nothing\*' matches no float weight",
        ),
        ("llama-dynamo-fp32", Recipe(INT4, INT8, INT8, (("*", INT8), ("val*", INT4))), "'val.*decides about no matrix"),
        ("llama-dynamo-fp32", Recipe(INT4, INT8, INT8, (("*", None),)), "no matrix has a format other than float"),
        ("qwen2-dynamo-fp32", Recipe(INT4, INT8, None), "embedding and head are one matrix here"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, recipe: Recipe, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        canonicalise(EXPORTS / name / "model.onnx", 64, recipe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [np.nan, np.inf, 1e9])
def test_a_weight_without_a_scale_is_refused(number: float, tmp_path: Path) -> None:
    model = onnx.load(EXPORTS / "llama-dynamo-fp32" / "model.onnx")
    head = next(t for t in model.graph.initializer if len(t.dims) == 2 and 512 in t.dims)
    numbers = onnx.numpy_helper.to_array(head).copy()
    numbers[7, 9] = number
    head.CopyFrom(onnx.numpy_helper.from_array(numbers, head.name))
    onnx.save(model, tmp_path / "model.onnx")
    matrix = next(m for m in found(tmp_path / "model.onnx") if m.name == head.name)
    with pytest.raises(UserError, match="not finite or too large for float16 scales"):
        matrix.codes()
