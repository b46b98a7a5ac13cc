"""Inferred shapes: what is remembered for a node serves those that are alike, and no others."""

from __future__ import annotations

import pytest

from passes.onnx import shapes
from passes.onnx.shapes import Point, known_shapes
from passes.onnx.testing import importing

AT = Point(1, 1, 0)


def inferred(body: str, constants: str = "") -> tuple[tuple[int, ...], list[int] | None]:
    """Shape of `y`, and its numbers where they are few."""
    imp = importing(f"g (float[b,s] input_ids) => (float[c,d] y) <{constants}> {{ y = {body} }}")
    known = known_shapes(imp, AT)[imp.graph.outputs[0]]
    return known.shape, None if known.data is None else known.data.reshape(-1).tolist()


PAIR = "float[2,3] a = {1,2,3,4,5,6}, float[2,3] c = {1,2,3,4,5,6}"


@pytest.mark.parametrize("most", [4096, 1])
def test_attributes_and_numbers_tell_answers_apart(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(shapes, "_ANSWERS", {})
    monkeypatch.setattr(shapes, "_MOST_ANSWERS", most)
    for _ in range(2):  # the second time from memory
        assert inferred("Concat <axis = 0> (a, c)", PAIR)[0] == (4, 3)
        assert inferred("Concat <axis = 1> (a, c)", PAIR)[0] == (2, 6)
        assert inferred("Transpose <perm = [0, 1]> (a)", PAIR)[0] == (2, 3)
        assert inferred("Transpose <perm = [1, 0]> (a)", PAIR)[0] == (3, 2)
        assert inferred("Reshape (a, n)", f"{PAIR}, int64[2] n = {{6, 1}}")[0] == (6, 1)
        assert inferred("Reshape (a, n)", f"{PAIR}, int64[2] n = {{1, 6}}")[0] == (1, 6)
        assert inferred("Add (a, c)", "int64[2] a = {1, 2}, int64[2] c = {3, 4}") == ((2,), [4, 6])
        assert inferred("Add (a, c)", "int64[2] a = {1, 2}, int64[2] c = {3, 5}") == ((2,), [4, 7])
    assert 0 < len(shapes._ANSWERS) <= most


def test_the_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a wrong answer in memory shows."""
    monkeypatch.setattr(shapes, "_ANSWERS", {})
    assert inferred("Concat <axis = 0> (a, c)", PAIR)[0] == (4, 3)
    for key in shapes._ANSWERS:
        shapes._ANSWERS[key] = [shapes.Known(1, (9, 9))]
    assert inferred("Concat <axis = 0> (a, c)", PAIR)[0] == (9, 9)


def test_attributes_that_would_end_the_process() -> None:
    gathered = "GatherND <batch_dims = {}> (a, n)"
    constants = f"{PAIR}, int64[2,1,1] n = {{0, 1}}"
    assert inferred(gathered.format(1), constants)[0] == (2, 1)
    with pytest.raises(KeyError):  # unknown
        inferred(gathered.format(-7), constants)
