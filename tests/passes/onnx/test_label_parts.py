"""Labels follow from the flow of data: norms before, after or inside a block, blocks in a row or side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from passes.onnx.label_parts import label, part_of
from targets.errors import UserError

FLOAT = TensorProto.FLOAT


class Sketch:
    """Nodes of a decoder of two layers without shapes: enough for their labels."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights = [numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")]

    def add(self, op_type: str, name: str, *inputs: str) -> str:
        """One node; weights where the operator takes them; its result has its name."""
        weighted = {"MatMul": ("w",), "RMSNormalization": ("w",), "Gather": ()}.get(op_type, ())
        domain = "com.microsoft" if op_type == "MatMulNBits" else ""
        self.nodes.append(helper.make_node(op_type, [*inputs, *weighted], [name], name=name, domain=domain))
        return name

    def attention(self, name: str, layer: int, *inputs: str) -> str:
        """An attention with its caches."""
        caches = [f"past_key_values.{layer}.{kind}" for kind in ("key", "value")]
        presents = [f"{name}.{kind}" for kind in ("key", "value")]
        self.nodes.append(helper.make_node("Attention", [*inputs, "", *caches], [name, *presents], name=name))
        return name

    def labels(self) -> dict[str, str]:
        """Name of each node -> its part, as people read it."""
        values = [helper.make_tensor_value_info(n, FLOAT, None) for n in self._caches()]
        inputs = [helper.make_tensor_value_info("input_ids", TensorProto.INT64, None), *values]
        outputs = [helper.make_tensor_value_info("logits", FLOAT, None)]
        graph = helper.make_graph(self.nodes, "sketch", inputs, outputs, self.weights)
        model = onnx_ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]))
        label(model.graph)
        return {node.name: part.text for node in model.graph if (part := part_of(node)) is not None}

    def _caches(self) -> list[str]:
        return [n for node in self.nodes for n in node.input if n.startswith("past")]


def decoder(block: Any) -> dict[str, str]:
    """Embedding, two layers as `block` makes them, final norm and head."""
    s = Sketch()
    s.weights.append(numpy_helper.from_array(np.zeros((4, 4), np.float32), "table"))
    x = s.add("Gather", "embedding", "table", "input_ids")
    for i in range(2):
        x = block(s, x, i)
    s.add("MatMul", "logits", s.add("RMSNormalization", "final", x))
    return s.labels()


def attend(s: Sketch, x: str, i: int, inner_norms: bool = False) -> str:
    q, k, v = (s.add("MatMul", f"{name}{i}", x) for name in "qkv")
    if inner_norms:
        q, k = (s.add("RMSNormalization", f"{name}_norm", name) for name in (q, k))
    return s.add("MatMul", f"o{i}", s.attention(f"attention{i}", i, q, k, v))


def feed(s: Sketch, x: str, i: int) -> str:
    return s.add("MatMul", f"down{i}", s.add("Gelu", f"gelu{i}", s.add("MatMul", f"up{i}", x)))


def pre_norm(s: Sketch, x: str, i: int) -> str:
    x = s.add("Add", f"first{i}", x, attend(s, s.add("RMSNormalization", f"norm{i}", x), i))
    return s.add("Add", f"second{i}", feed(s, s.add("RMSNormalization", f"ffn_norm{i}", x), i), x)


def post_norm(s: Sketch, x: str, i: int) -> str:
    """OLMo2: q and k are normalised first of all, blocks after they were computed."""
    x = s.add("Add", f"first{i}", x, s.add("RMSNormalization", f"norm{i}", attend(s, x, i, inner_norms=True)))
    return s.add("Add", f"second{i}", x, s.add("RMSNormalization", f"ffn_norm{i}", feed(s, x, i)))


def side_by_side(s: Sketch, x: str, i: int) -> str:
    """GPT-J: both blocks read the layer's input."""
    made = attend(s, s.add("RMSNormalization", f"norm{i}", x), i)
    beside = feed(s, s.add("RMSNormalization", f"ffn_norm{i}", x), i)
    return s.add("Add", f"second{i}", s.add("Add", f"first{i}", made, beside), x)


@pytest.mark.parametrize("block", [pre_norm, post_norm])
def test_blocks_in_a_row(block: Any) -> None:
    found = decoder(block)
    assert (found["embedding"], found["final"], found["logits"]) == ("embedding", "head", "head")
    for i in range(2):
        for name in ("norm", "q", "k", "v", "attention", "o", "first"):
            assert found[f"{name}{i}"] == f"attention of layer {i}", name
        for name in ("ffn_norm", "up", "gelu", "down", "second"):
            assert found[f"{name}{i}"] == f"ffn of layer {i}", name


def test_norms_of_queries_and_keys_belong_to_the_attention_even_where_they_come_first() -> None:
    found = decoder(post_norm)
    assert [found[f"{name}{i}_norm"] for i in range(2) for name in "qk"] == [
        *["attention of layer 0"] * 2,
        *["attention of layer 1"] * 2,
    ]


def test_blocks_side_by_side() -> None:
    found = decoder(side_by_side)
    for i in range(2):
        assert {found[f"{name}{i}"] for name in ("norm", "q", "attention", "o")} == {f"attention of layer {i}"}
        assert {found[f"{name}{i}"] for name in ("ffn_norm", "up", "gelu", "down")} == {f"ffn of layer {i}"}
    assert (found["embedding"], found["final"], found["logits"]) == ("embedding", "head", "head")


def test_layers_out_of_order_are_refused() -> None:
    def crossed(s: Sketch, x: str, i: int) -> str:
        return s.add("Add", f"first{i}", x, attend(s, x, 1 - i))

    with pytest.raises(UserError, match="attention 1 reads what attention -1 computed"):
        decoder(crossed)

    def twice(s: Sketch, x: str, i: int) -> str:
        made = s.attention(f"attention{i}", 0, *(s.add("MatMul", f"{name}{i}", x) for name in "qkv"))
        return s.add("Add", f"first{i}", x, made)

    with pytest.raises(UserError, match=r"belong to layers \[0, 0\]"):
        decoder(twice)
