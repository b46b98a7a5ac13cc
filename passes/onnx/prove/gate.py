"""Gates of feed-forward parts (Shazeer 2020, GLU variants), as passes/relax/fuse_gated_ffn.py fuses them.

Mul(Mul(g, Sigmoid(g)), u)    SiLU: it has a kernel as such a gate only
Mul(Gelu(g), u)               GELU: it has a kernel of its own, too
"""

from __future__ import annotations

from typing import Any

from passes.onnx.prove.weight_expression import is_weight


def sigmoid_of_silu(node: Any) -> Any:
    """The Sigmoid of the node x * Sigmoid(x); None where a node is something else."""
    if node is None or node.op_type != "Mul":
        return None
    for value, other in (node.inputs, node.inputs[::-1]):
        maker = value.producer()
        if maker is not None and maker.op_type == "Sigmoid" and maker.inputs[0] is other:
            return maker
    return None


def gate_of(node: Any) -> Any:
    """The SiLU (its Mul) or GELU that a Mul multiplies another computed value by; None where it is no such Mul.

    A SiLU is the gate where there is a GELU, too; two SiLUs are none, because one of them would need a kernel.
    """
    if node.op_type != "Mul" or any(is_weight(value) for value in node.inputs) or sigmoid_of_silu(node) is not None:
        return None
    makers = [value.producer() for value in node.inputs]
    silus = [maker for maker in makers if sigmoid_of_silu(maker) is not None]
    if silus:
        return silus[0] if len(silus) == 1 else None
    return next((maker for maker in makers if maker is not None and maker.op_type == "Gelu"), None)


def is_gate_alone(node: Any) -> bool:
    """Whether all that reads a node's result is Muls that it is the gate of."""
    value = node.outputs[0]
    users = [user for user, _ in value.uses()]
    return (
        not value.is_graph_output()
        and len(users) == len(set(users)) > 0
        and all(gate_of(user) is node for user in users)
    )
