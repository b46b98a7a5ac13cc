"""Around an operator, the nodes that use nothing but one value and scalar constants: where they begin and end."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from passes.onnx.pass_context import Declined, scalar

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Cast", "Identity")


def source(node: Any, elementwise: Collection[str]) -> Any:
    """The one value all of the arithmetic before a node starts from: walk back while one value is enough.

    Args:
        node: where the walk begins.
        elementwise: the operators that it may go through.

    Raises:
        Declined: there is none.
    """
    frontier, order = set(_operands(node)), {n: i for i, n in enumerate(node.graph)}
    best = None
    while True:
        if len(frontier) == 1:
            (best,) = frontier
        latest = max(frontier, key=lambda v: order.get(v.producer(), -1))
        producer = latest.producer()
        if producer is None or producer.op_type not in elementwise or producer.domain:
            break
        if len(frontier) == 1 and not _single(producer):
            break
        frontier = (frontier - {latest}) | set(_operands(producer))
        if not frontier:
            break
    if best is None:
        raise Declined("it starts from more than one value")
    return best


def result(x: Any, node: Any, elementwise: Collection[str]) -> Any:
    """The last value computed from `x` and scalars alone, after `node`.

    Raises:
        Declined: there are several.
    """
    inside, after = {x}, {node.outputs[0]}
    for candidate in node.graph:
        if candidate.op_type not in elementwise or candidate.domain:
            continue
        operands = _operands(candidate)
        if operands and all(v in inside for v in operands):
            inside.add(candidate.outputs[0])
            if any(v in after for v in operands):
                after.add(candidate.outputs[0])
    ends = [
        v for v in after if v in inside and (v.is_graph_output() or any(u.outputs[0] not in after for u, _ in v.uses()))
    ]
    if len(ends) != 1:
        raise Declined("its result is used in the middle")
    return ends[0]


def _operands(node: Any) -> list[Any]:
    """The operands that are no scalar constants."""
    return [v for v in node.inputs if v is not None and scalar(v) is None]


def _single(node: Any) -> bool:
    """Whether a node has one operand beside scalars, or the same one twice, or branches that meet again."""
    return len(set(_operands(node))) <= 2 and not any(v.const_value is not None for v in _operands(node))
