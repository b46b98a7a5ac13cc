from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from passes.onnx.load.cache_branch import SWITCH, take_cache_branch
from passes.onnx.load.load import load
from targets.errors import UserError


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"])


def branch(operator: str, output: str, constant: str) -> onnx.GraphProto:
    nodes = [helper.make_node(operator, ["x", constant], ["made"]), helper.make_node("Neg", ["made"], [output])]
    return helper.make_graph(nodes, operator, [], [value(output)], [helper.make_tensor(constant, 1, [], [2.0])])


def merged(then: onnx.GraphProto | None = None) -> onnx.ModelProto:
    """y = -(x * 2) or -(x + 2), and z = |y| outside; `shared` is read by neither."""
    node = helper.make_node(
        "If", [SWITCH], ["y"], then_branch=then or branch("Mul", "there", "two"), else_branch=branch("Add", "y", "two")
    )
    switch = helper.make_tensor_value_info(SWITCH, onnx.TensorProto.BOOL, [1])
    shared = helper.make_tensor("of_the_other_branch", 1, [1], [3.0])
    nodes = [node, helper.make_node("Abs", ["y"], ["z"])]
    return helper.make_model(
        helper.make_graph(nodes, "merged", [value("x"), switch], [value("y"), value("z")], [shared])
    )


def test_the_branch_with_a_cache_takes_the_place_of_the_choice() -> None:
    proto = merged()
    assert take_cache_branch(proto)
    onnx.checker.check_model(proto)
    made = {n.op_type: (list(n.input), list(n.output)) for n in proto.graph.node}
    assert made == {
        "Mul": (["x", "two"], ["made"]),
        "Neg": (["made"], ["y"]),
        "Abs": (["y"], ["z"]),
    }
    assert [v.name for v in proto.graph.input] == ["x"]
    assert [t.name for t in proto.graph.initializer] == ["two"]


def test_a_file_without_the_switch_is_left_alone() -> None:
    proto = merged()
    proto.graph.node[0].input[0] = proto.graph.input[1].name = "another"
    before = proto.SerializeToString()
    assert not take_cache_branch(proto)
    assert proto.SerializeToString() == before


def outer_output() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "then", [], [value("x")])


def nested() -> onnx.GraphProto:
    inner = helper.make_node("If", ["x"], ["there"], then_branch=outer_output(), else_branch=outer_output())
    return helper.make_graph([inner], "then", [], [value("there")])


def two_outputs() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "then", [], [value("n"), value("n")])


@pytest.mark.parametrize("then", [outer_output, nested, two_outputs])
def test_what_is_not_that_simple_is_left_for_the_refusal(then: Callable[[], onnx.GraphProto]) -> None:
    proto = merged(then())
    before = proto.SerializeToString()
    assert not take_cache_branch(proto)
    assert proto.SerializeToString() == before


def test_the_loader_checks_the_graph_that_is_left(tmp_path: Path) -> None:
    """A name that both the branch and the graph make is found, as in any other file."""
    proto = merged(branch("Mul", "z", "two"))
    proto.graph.node[1].output[0] = "made"
    proto.opset_import[0].version = 18
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="makes 'made', which is made already"):
        load(tmp_path / "model.onnx")


def texts(message: Any) -> Iterator[str]:
    """All strings in a message."""
    for field, value in message.ListFields():
        for one in value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]:
            if field.message_type is not None:
                yield from texts(one)
            elif isinstance(one, str):
                yield one


def test_text_that_is_no_utf8_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    """The library gives it as bytes, on which code for strings would stumble."""
    path, proto = tmp_path / "model.onnx", merged()
    opset = helper.make_opsetid("", 18)
    proto.opset_import.add(domain="ai.onnx.own", version=1)
    body = [helper.make_node("Identity", ["fx"], ["fy"], name="same")]
    proto.functions.append(helper.make_function("ai.onnx.own", "Same", ["fx"], ["fy"], body, [opset]))
    content, tried = proto.SerializeToString(), 0
    path.write_bytes(content)
    load(path)
    for text in sorted(set(filter(None, texts(proto)))):
        for found in re.finditer(re.escape(text.encode()), content):
            path.write_bytes(content[: found.start()] + b"\xff" + content[found.start() + 1 :])
            with contextlib.suppress(UserError):
                load(path)
            tried += 1
    assert tried > 40
