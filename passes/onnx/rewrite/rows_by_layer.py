"""A row that holds numbers for each layer, seen as [batch, new, layers, width] -> a row, and its columns of a layer.

    Reshape(row, [0, 0, L, P]), RMSNormalization, Add, Mul, Gather(i){axis 2}  ->  the same on rows of L * P, Split

Gemma 3n's embeddings for each layer are made so. The norm stays one of equal parts of a row, between two Reshapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.onnx.pass_context import (
    Declined,
    Importing,
    PassLog,
    add_initializer,
    attribute,
    constant,
    describe,
    emit,
    replace_uses,
    scalar,
)
from passes.onnx.rewrite.take_columns import take_columns
from passes.onnx.shapes import known_shapes, points


def rows_by_layer(imp: Importing) -> PassLog:
    """Rewrite every Gather of a layer's numbers whose whole row is found; others stay, with the reason in the log."""
    nodes = [node for node in imp.graph if node.op_type == "Gather" and attribute(node, "axis", 0) == 2]
    matched, notes, rows = 0, list[str](), _Rows(imp) if nodes else None
    for node in nodes:
        try:
            assert rows is not None
            rows.take(node)
            matched += 1
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("rows_by_layer", matched, tuple(notes))


class _Rows:
    """Values [batch, new, layers, width] as rows [batch, new, layers * width]."""

    def __init__(self, imp: Importing) -> None:
        self.imp, self.made = imp, dict[Any, Any]()
        self.known = [known_shapes(imp, at) for at in points(imp)]

    def take(self, node: Any) -> None:
        """Rewrite one Gather."""
        index, shape = scalar(node.inputs[1]), self._shape(node.inputs[0])
        if index is None or not -shape[0] <= index < shape[0]:
            raise Declined("it does not take the numbers of one layer")
        row, (layers, width) = self.row(node.inputs[0]), shape
        start = int(index) % layers * width
        replace_uses(node.outputs[0], take_columns(self.imp, node, row, start, width, layers * width))

    def _shape(self, value: Any) -> tuple[int, int]:
        """(layers, width)."""
        found = {known[value].shape[2:] if value in known else () for known in self.known}
        shape = found.pop()
        if found or len(shape) != 2:
            raise Declined(f"{value.name} is not [batch, tokens, layers, numbers]")
        return shape[0], shape[1]

    def row(self, value: Any) -> Any:
        """The row of a value; the nodes that make it are written where those of the value stand."""
        if value not in self.made:
            self.made[value] = self._made(value)
        return self.made[value]

    def _made(self, value: Any) -> Any:
        node, name, shape = value.producer(), f"{value.name}.row", self._shape(value)
        if node is None:
            raise Declined(f"{value.name} is not computed")
        if node.op_type == "Reshape":
            numbers = constant(node.inputs[1])
            if numbers is not None and numbers.tolist() == [0, 0, *shape]:
                return node.inputs[0]
        if node.op_type == "RMSNormalization":
            after = next(user for user in value.uses()).node
            flat = add_initializer(self.imp.graph, f"{name}.shape", np.array([0, 0, -1], np.int64))
            made = emit(after, "Reshape", [value, flat], name=name, outputs=[name]).outputs[0]
            made.type = value.type
            return made
        if node.op_type in ("Add", "Mul"):
            inputs = [v if scalar(v) is not None else self.row(v) for v in node.inputs]
            made = emit(node, node.op_type, inputs, name=name, outputs=[name]).outputs[0]
            made.type = value.type
            return made
        raise Declined(f"{describe(node)} makes numbers for each layer in a way that is not known")
