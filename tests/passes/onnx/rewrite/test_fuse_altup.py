"""What Gemma 3n's export has around its layers is recognised by its numbers: with others it is refused, never taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from unpack_families import unpack_families

from passes.onnx import canonicalise
from passes.onnx.prove.weight_expression import initializer_of
from targets.errors import UserError

DATA = Path(__file__).parents[4] / "tests" / "data"
EXPORT = unpack_families(DATA) / "gemma3n-shared-dynamo-fp32" / "model.onnx"


def maker(proto: Any, name: str) -> Any:
    return next((node for node in proto.graph.node if name in node.output), onnx.NodeProto())


def other_number(proto: Any, node: Any, place: int, number: float) -> None:
    """Let a node read another constant, which others may share."""
    name = f"{node.name}.other"
    old = next(t for t in proto.graph.initializer if t.name == node.input[place])
    shape = tuple(old.dims)
    proto.graph.initializer.append(numpy_helper.from_array(np.full(shape, number, np.float32), name))
    node.input[place] = name


def correction(proto: Any) -> Any:
    """The Add of one to the factors of a correction."""
    moved = next(n for n in proto.graph.node if n.op_type == "Mul" and maker(proto, n.input[0]).op_type == "Tile")
    return maker(proto, maker(proto, maker(proto, moved.input[1]).input[0]).input[0])


def wrong_correction(proto: Any) -> None:
    other_number(proto, correction(proto), 1, 1.01)


def wrong_least(proto: Any) -> None:
    for node in [n for n in proto.graph.node if n.op_type == "Clip"]:
        other_number(proto, node, 1, -1.0)


def bounded_above(proto: Any) -> None:
    """A bound that no usual number reaches."""
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(1e4), "most"))
    for node in [n for n in proto.graph.node if n.op_type == "Clip"]:
        node.input.append("most")


def by_the_token_before(proto: Any) -> None:
    """The row of a token of the layers' table is that of another one where the token before it is a later one."""
    table = next(n for n in proto.graph.node if n.op_type == "Gather" and maker(proto, n.input[1]).op_type == "Where")
    ids, nodes = table.input[1], []
    constants = {"zero": 0, "one": [1], "minus_one": [-1], "none": [0], "pads": [0, 1, 0, 0]}
    for name, number in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(number, np.int64), f"of_{name}"))
    nodes.append(onnx.helper.make_node("Pad", [ids, "of_pads"], ["of_padded"]))
    nodes.append(onnx.helper.make_node("Slice", ["of_padded", "of_none", "of_minus_one", "of_one"], ["of_before"]))
    nodes.append(onnx.helper.make_node("Greater", ["of_before", ids], ["of_later"]))
    nodes.append(onnx.helper.make_node("Where", ["of_later", "of_zero", ids], ["of_chosen"]))
    place = list(proto.graph.node).index(table)
    for node in reversed(nodes):
        proto.graph.node.insert(place, node)
    table.input[1] = "of_chosen"


def test_what_it_becomes() -> None:
    decoder = canonicalise(EXPORT, 32)
    kinds = [node.op_type for node in decoder.model.graph]
    counts = {kind: kinds.count(kind) for kind in ("AltUpPredict", "AltUpCorrect", "AltUpAdd", "GaussianTopK")}
    assert counts == {"AltUpPredict": 4, "AltUpCorrect": 4, "AltUpAdd": 4, "GaussianTopK": 2}
    assert kinds.count("MatchMagnitude") == kinds.count("Concat") * 2 == 4
    assert {n.attributes["active"].value for n in decoder.model.graph if n.op_type == "AltUpCorrect"} == {1}
    found = [n.attributes["deviations"].value for n in decoder.model.graph if n.op_type == "GaussianTopK"]
    assert np.abs(np.array(found) - (1.6448536, 0.8416212)).max() < 1e-5  # the quantiles of 0.95 and 0.8
    assert decoder.facts.copies == ((2, 0), (3, 1))
    assert (decoder.facts.layers, decoder.facts.family) == (4, "gemma3n")


def test_tokens_without_a_row_of_their_own_have_that_of_the_first() -> None:
    decoder = canonicalise(EXPORT, 32)
    tables = [n for n in decoder.model.graph if n.op_type == "Gather"]
    found = [initializer_of(node.inputs[0]) for node in tables]
    (longer,) = (value.const_value.numpy() for value in found if value.name.endswith(".all"))
    assert longer.shape == (64, 32)
    assert np.array_equal(longer[56:], np.repeat(longer[:1], 8, axis=0))
    assert not np.array_equal(longer[55], longer[0])


@pytest.mark.parametrize("change", [wrong_correction, wrong_least, bounded_above])
def test_other_numbers_are_refused(change: Any, tmp_path: Path) -> None:
    proto = onnx.load(EXPORT)
    change(proto)
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"Gemma 3n, and is written in a way that is not known") as error:
        canonicalise(tmp_path / "model.onnx", 32)
    assert "\n" not in str(error.value)


def test_rows_that_depend_on_the_token_before_are_refused(tmp_path: Path) -> None:
    proto = onnx.load(EXPORT)
    by_the_token_before(proto)
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(UserError) as error:
        canonicalise(tmp_path / "model.onnx", 32)
    assert "\n" not in str(error.value)
