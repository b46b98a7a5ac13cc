"""What people call an operator of a decoder, read off where its result goes in the canonical graph."""

from __future__ import annotations

from typing import Any

from costmodel.place import ATTENTION, EMBEDDING, HEAD, Part
from passes.analysis.stream_names import stream_name
from passes.onnx.label_parts import part_of, row_inputs
from passes.onnx.pass_context import describe
from passes.onnx.weight_sizes import LINEAR

_SAME_ROW = ("Reshape", "Split", "Mul", "Add", "Clip")  # with one computed input: a view, a part, a factor, a bias


class OperatorNames:
    """What people call an operator: by its part, and by where its result goes."""

    def __init__(self, nodes: list[Any]) -> None:
        self._last: dict[Part, Any] = {}  # the last matrix multiplication of each part
        self._streams = any(node.op_type == "AltUpPredict" for node in nodes)
        self._attended: dict[Any, bool] = {}  # node -> its layer's attention stands before it
        attended = False
        for node in nodes:
            attended = (attended or node.op_type == "Attention") and labelled_part(node).kind == ATTENTION
            self._attended[node] = attended
            if node.op_type in LINEAR:
                self._last[labelled_part(node)] = node

    def __call__(self, node: Any, kind: str) -> str:
        """The name of a node's operator."""
        part = labelled_part(node).kind
        if self._streams and (name := stream_name(node, kind, _operand(node.outputs[0]))):
            return name
        if kind == "linear":
            return self._linear(node, part)
        if kind == "bias":
            maker = next(value.producer() for value in row_inputs(node))
            return f"{self(maker, 'linear')}_bias" if maker.op_type in LINEAR else f"{part}_bias"
        if kind in ("rms_norm", "add_rms_norm", "layer_norm"):
            return self._norm(node, part)
        if kind == "rope":
            return f"rope_{_operand(node.outputs[0])}"
        if kind == "clip":
            return f"clip_{_operand(node.outputs[0])}" if part == ATTENTION else f"{part}_clip"
        if kind == "add":
            return "positions_add" if part == EMBEDDING else f"{part}_add"
        if kind == "scale" and part == HEAD:
            after_tanh = row_inputs(node)[0].producer().op_type == "Tanh"
            before_tanh = any(user.op_type == "Tanh" for user, _ in node.outputs[0].uses())
            return "cap_up" if after_tanh else "cap_down" if before_tanh else "logits_scale"
        return {"scale": f"{part}_scale", "tanh": "cap"}.get(kind, kind)

    def _linear(self, node: Any, part: str) -> str:
        users = [user for user, _ in _after_bias(node).uses()]
        split = any(user.op_type == "Split" for user in users)
        if part == ATTENTION:
            return "o" if self._attended[node] else "qkv" if split else _operand(node.outputs[0])
        last = node is self._last[labelled_part(node)]
        if part == EMBEDDING:
            return "project_in"
        if part == HEAD:
            return "head" if last else "project_out"
        if last:
            return "down"
        nonlinear = any(user.op_type in ("Sigmoid", "Gelu") for user in users)
        gated = any(user.op_type == "Mul" for u in users for user, _ in u.outputs[0].uses())
        return "gate_up" if split else "gate" if nonlinear and gated else "up"

    def _norm(self, node: Any, part: str) -> str:
        if part == HEAD:
            return "final_norm"
        maker = row_inputs(node)[0].producer()
        while maker is not None and len(row_inputs(maker)) == 1 and maker.op_type in _SAME_ROW:
            maker = row_inputs(maker)[0].producer()
        own = maker is not None and labelled_part(maker) == labelled_part(node) and maker.op_type != "Add"
        if part == ATTENTION and own and not self._attended[node]:
            return f"{_operand(node.outputs[0])}_norm"
        return f"{part}_post_norm" if own else f"{part}_norm"

    def taken(self, value: Any) -> str:
        """The name of the kernel that takes one output of a Split."""
        node = value.producer()
        if self._streams:
            return stream_name(node, "take", "")
        if labelled_part(node).kind == ATTENTION:
            return f"take_{_operand(value)}"
        gate = any(user.op_type in ("Sigmoid", "Gelu") for user, _ in value.uses())
        return "take_gate" if gate else "take_up"


def _after_bias(node: Any) -> Any:
    """The result of a matrix multiplication with its bias, where one is added."""
    uses = [user for user, _ in node.outputs[0].uses()]
    biased = len(uses) == 1 and uses[0].op_type == "Add" and len(row_inputs(uses[0])) == 1
    return uses[0].outputs[0] if biased else node.outputs[0]


def _operand(value: Any) -> str:
    """Which operand of an attention a value becomes: q, k or v; empty where it becomes none."""
    todo = [value]
    while todo:
        current = todo.pop(0)
        for user, i in current.uses():
            if user.op_type == "Attention":
                return "qkv"[i]
            if user.op_type not in (*LINEAR, "Split"):
                todo += user.outputs
    return ""


def labelled_part(node: Any) -> Part:
    """The part that the importer labelled a node with; every node that is counted has one."""
    part = part_of(node)
    assert part is not None, f"{describe(node)} has no label"
    return part
