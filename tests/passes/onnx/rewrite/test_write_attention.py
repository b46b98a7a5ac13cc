"""Masks and positions of a canonical graph: those that read attention_mask beside those that do not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from passes.onnx.prove.prove_mask import Mask
from passes.onnx.rewrite.write_attention import _mask, positions_value
from passes.onnx.testing import CanonicalModel, importing

IDS = np.array([[5, 6, 7]])
MASK = np.array([[0, 0, 1, 1, 1]])  # two tokens of padding, which are the past
FEED = {"input_ids": IDS, "attention_mask": MASK, "past_key_values.0.key": np.zeros((1, 2, 2, 4), np.float32)}


def graph() -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A graph of each mask and each of the positions, and what they are."""
    imp = importing(
        "g (int64[b,s] input_ids, int64[b,t] attention_mask, float[b,2,p,4] past_key_values.0.key) "
        "=> (int64[b,s] y) { y = Identity(input_ids) }",
        opset=23,
    )
    before = imp.graph[0]
    made = {
        "counted": positions_value(imp, before, "mask"),
        "after the past": positions_value(imp, before, "past"),
        "padded": _mask(imp, before, Mask(window=0, padding=True, scale=1.0)),
        "unpadded": _mask(imp, before, Mask(window=0, padding=False, scale=1.0)),
    }
    for value in made.values():
        value.shape = ir.Shape([None] * (2 if value.dtype == ir.DataType.INT64 else 4))
        imp.graph.outputs.append(value)
    names = {value.name: what for what, value in made.items()}
    found = CanonicalModel(imp.model).run(FEED)
    return imp.model, {names[name]: numbers for name, numbers in found.items() if name in names}


def test_each_kind_has_its_own_body() -> None:
    model, found = graph()
    assert found["counted"].tolist() == [[0, 1, 2]]
    assert found["after the past"].tolist() == [[2, 3, 4]]
    assert (found["padded"][0, 0] == 0).astype(int).tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert (found["unpadded"][0, 0] == 0).astype(int).tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert len(model.functions) == 4
