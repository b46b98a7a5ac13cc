"""Recipes: what names and roles decide."""

from __future__ import annotations

import pytest

from passes.onnx.quantise.recipe import EMBEDDING, HEAD, LAYER, Recipe, block_format
from targets.errors import UserError

INT4, INT8, WIDE = block_format("int4", 32), block_format("int8", 32), block_format("int4", 128)
RECIPE = Recipe(INT4, INT8, None, (("*down*", INT8), ("*.down_proj.*", None), ("model.layers.1.*", WIDE)))


@pytest.mark.parametrize(
    ("roles", "names", "expected"),
    [
        ({LAYER}, ("model.layers.0.q.weight", "node_1"), INT4),
        ({HEAD}, ("lm_head",), INT8),
        ({EMBEDDING}, ("embed",), None),
        ({LAYER}, ("model.layers.0.down_proj.weight", "node_2"), INT8),  # the first pattern that matches
        ({LAYER}, ("val_3", "/layers.0/down/MatMul"), INT8),  # the node's name counts as the weight's
        ({LAYER}, ("model.layers.1.q.weight",), WIDE),
        ({HEAD}, ("model.layers.1.q.weight",), WIDE),
        ({LAYER}, ("Model.layers.1.q.weight",), INT4),  # case matters
    ],
)
def test_the_format_of_a_matrix(roles: set[str], names: tuple[str, ...], expected: object) -> None:
    assert RECIPE.format_of(roles, names) == expected


def test_one_matrix_has_one_format() -> None:
    with pytest.raises(UserError, match="one matrix here, which cannot be float and int8:32"):
        RECIPE.format_of({HEAD, EMBEDDING}, ("embed",))
    assert Recipe(INT4, INT8, INT8).format_of({HEAD, EMBEDDING}, ("embed",)) == INT8


def test_text() -> None:
    assert Recipe(INT4, INT8, INT8).text == "int4:32, head and embedding int8:32"
    assert RECIPE.text.startswith("int4:32, head int8:32, embedding float, *down* int8:32, *.down_proj.* float, ")
