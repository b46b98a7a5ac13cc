"""What an operator of a decoder with AltUp's streams is called, by what it reads and who reads its result."""

from __future__ import annotations

from typing import Any

from costmodel.place import ATTENTION, EMBEDDING, HEAD
from passes.onnx.facts import by_layer, of_layers
from passes.onnx.label_parts import part_of, row_inputs
from passes.onnx.weight_sizes import LINEAR

_OF_LINEAR = {"o": "attention_post_norm", "laurel_up": "laurel_norm", "down": "ffn_post_norm"}


def stream_name(node: Any, kind: str, operand: str) -> str:
    """The name of a node's operator; empty where it is called as in other decoders.

    Args:
        node: labelled.
        kind: of its operator.
        operand: which operand of an attention its result becomes, or "".
    """
    part = part_of(node)
    assert part is not None
    name = {"linear": _linear, "scale": _scale, "tanh": _tanh, "add": _add, "take": _take}.get(kind)
    name = _norm if kind in ("rms_norm", "add_rms_norm") else name
    if name is not None:
        return name(node, part.kind, operand)
    return "layer_gelu_mul" if kind == "gelu_mul" and by_layer(node) else ""


def _maker(node: Any) -> Any:
    """The node that made the first row; a node of no operator where a row is none's result."""
    return next((v.producer() for v in row_inputs(node) if v.producer() is not None), node)


def _users(node: Any) -> list[Any]:
    return [user for value in node.outputs for user, _ in value.uses()]


def _linear(node: Any, part: str, operand: str) -> str:
    users, maker = {user.op_type: user for user in _users(node)}, _maker(node)
    if "Tanh" in users and part != HEAD:
        return "router"
    if maker.op_type == "Tanh":
        return "predict_factors" if part == ATTENTION else "correct_factors"
    if "MatchMagnitude" in users:
        return "stream_in" if part == EMBEDDING else "stream_out"
    if part == EMBEDDING:
        return "layers_in"
    if part == HEAD:
        return "head"
    if part == ATTENTION:
        laurel = "laurel_up" if maker.op_type in LINEAR else "laurel_down"
        return "o" if maker.op_type == "Attention" else operand or laurel
    if maker.op_type == "Mul" and len(row_inputs(maker)) == 2:
        return "layer_down" if by_layer(maker) else "down"
    gelu = users.get("Gelu")
    if gelu is not None and any(by_layer(user) for user in _users(gelu)):
        return "layer_gate"
    return "gate" if gelu is not None or "GaussianTopK" in users else "up"


def _norm(node: Any, part: str, operand: str) -> str:
    if part in (HEAD, EMBEDDING):
        return "final_norm" if part == HEAD else "layers_norm"
    maker = _maker(node)
    if maker.op_type in LINEAR:
        return _OF_LINEAR.get(_linear(maker, part, ""), "layer_post_norm")
    if maker.op_type == "Reshape":
        return f"{operand}_norm"
    routed = any(user.op_type == "Mul" and _routes(user) for user in _users(node))
    return "router_norm" if routed else f"{part}_norm"


def _routes(scale: Any) -> bool:
    return any(user.op_type in LINEAR and _linear(user, ATTENTION, "") == "router" for user in _users(scale))


def _scale(node: Any, part: str, operand: str) -> str:
    maker = _maker(node)
    if part == EMBEDDING:
        if maker.op_type in LINEAR:
            return "layers_in_scale"
        return "layers_sum_scale" if maker.op_type == "Add" else "layers_scale" if of_layers(maker) else ""
    if part == HEAD:
        return "streams_mean" if maker.op_type == "Add" else ""
    return "router_scale" if maker.op_type == "RMSNormalization" else "attention_scale"


def _tanh(node: Any, part: str, operand: str) -> str:
    return "" if part == HEAD else "router_tanh"


def _add(node: Any, part: str, operand: str) -> str:
    if part in (EMBEDDING, HEAD):
        return "layers_add" if part == EMBEDDING else "streams_add"
    makers = [v.producer().op_type for v in row_inputs(node)]
    return {"RMSNormalization": "laurel_add", "Add": "both_add"}.get(makers[0] if len(set(makers)) == 1 else "", "")


def _take(node: Any, part: str, operand: str) -> str:
    made = part_of(_maker(node))
    return "take_layer" if made is not None and made.kind == EMBEDDING else "take_stream"
