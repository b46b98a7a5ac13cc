"""The float matrices of an export that can be quantised: weights of MatMul and Gemm, and the embedding.

The graph is as the exporter wrote it, in float32: the import and the reference of `verify` find the same ones in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from passes.onnx.pass_context import Importing, attribute, emit
from passes.onnx.prove.weight_expression import is_weight
from passes.onnx.quantise.recipe import EMBEDDING, HEAD, LAYER
from passes.onnx.rewrite.tie_equal_head import same_numbers

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_SAME = ("Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze", "Flatten")
_AROUND = ("Cast", "Identity", "Transpose")  # between a weight and what reads it


@dataclass(frozen=True)
class Use:
    """A node that reads a matrix; `transposed`: it multiplies by the transposed one."""

    node: Any
    transposed: bool


@dataclass
class Matrix:
    """A matrix [K, N], or [N, K] where `axis` is 1.

    Attributes:
        weight: its initialiser.
        axis: along which the sums run, and so the blocks.
        uses: the nodes that read it, also in a copy of it.
        roles: LAYER, HEAD, EMBEDDING; HEAD and EMBEDDING where they are one matrix.
    """

    weight: Any
    axis: int
    uses: list[Use]
    roles: set[str]

    @property
    def k(self) -> int:
        """Numbers that a sum runs over."""
        return int(self.weight.const_value.shape[self.axis])

    @property
    def by_rows(self) -> bool:
        """Whether rows are taken of the transposed matrix, so that this is the one to store."""
        return EMBEDDING in self.roles and self.axis == 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the weight and of the nodes that read it, for patterns."""
        return (str(self.weight.name), *(str(use.node.name) for use in self.uses))


def matrices(imp: Importing) -> list[Matrix]:
    """All of them, in the order of the file's initialisers; a copy of the embedding is the embedding."""
    heads = set(_heads(imp))
    found: list[Matrix] = []
    for weight in imp.graph.initializers.values():
        tensor = weight.const_value
        if tensor is None or tensor.dtype not in _FLOATS or len(tensor.shape) != 2 or weight.is_graph_output():
            continue
        uses = list(_uses(weight))
        axes = {_axis(use) for use in uses}
        if len(axes) != 1 or None in axes:
            continue
        roles = {EMBEDDING if u.node.op_type == "Gather" else HEAD if u.node in heads else LAYER for u in uses}
        found.append(Matrix(weight, axes.pop() or 0, uses, roles))
    return _without_copies(found)


def read_instead(matrix: Matrix, value: Any) -> None:
    """Let all that reads a matrix read another value of its shape; of the transposed shape where `by_rows`."""
    turned: Any = None
    for use in matrix.uses:
        node, transposed = use.node, use.transposed ^ matrix.by_rows
        if node.op_type == "Gather":
            node.replace_input_with(0, value)
        elif node.op_type == "Gemm":
            node.attributes["transB"] = ir.AttrInt64("transB", int(transposed))
            node.replace_input_with(1, value)
        elif not transposed:
            node.replace_input_with(1, value)
        else:
            if turned is None:
                name = f"{value.name}.transposed"
                after = value.producer()
                first = next(iter(node.graph)) if after is None else None
                turned = _transpose(value, first, after, name)
            node.replace_input_with(1, turned)


def _transpose(value: Any, before: Any, after: Any, name: str) -> Any:
    if before is not None:
        turned = emit(before, "Transpose", [value], {"perm": [1, 0]}, name=name, outputs=[name]).outputs[0]
    else:
        node = ir.node("Transpose", [value], {"perm": [1, 0]}, name=name)
        node.outputs[0].name = name
        after.graph.insert_after(after, node)
        turned = node.outputs[0]
    turned.type = value.type
    return turned


def weight_of(node: Any) -> tuple[Any, bool] | None:
    """(the initialiser that a MatMul or a Gemm multiplies by, whether transposed), or None."""
    if node.domain or node.op_type not in ("MatMul", "Gemm") or attribute(node, "transA", 0):
        return None
    value, transposed = node.inputs[1], bool(attribute(node, "transB", 0))
    while value is not None and value.producer() is not None:
        maker = value.producer()
        if not _around(maker):
            return None
        transposed ^= maker.op_type == "Transpose"
        value = maker.inputs[0]
    return None if value is None or value.const_value is None else (value, transposed)


def _around(node: Any) -> bool:
    return not node.domain and node.op_type in _AROUND and list(attribute(node, "perm", (1, 0))) == [1, 0]


def _uses(weight: Any) -> Iterator[Use]:
    """What reads a weight, through casts and transposes."""
    values = [(weight, False)]
    while values:
        value, transposed = values.pop()
        for node, _ in value.uses():
            if _around(node):
                values.append((node.outputs[0], transposed ^ (node.op_type == "Transpose")))
            else:
                yield Use(node, transposed ^ bool(node.op_type == "Gemm" and attribute(node, "transB", 0)))


def _axis(use: Use) -> int | None:
    """Along which axis of the matrix a use adds products; None for other uses. Rows are taken of [vocab, width]."""
    node = use.node
    if node.domain:
        return None
    if node.op_type == "Gather":
        return None if attribute(node, "axis", 0) or not _of_tokens(node.inputs[1]) else int(not use.transposed)
    if node.op_type not in ("MatMul", "Gemm") or attribute(node, "transA", 0) or is_weight(node.inputs[0]):
        return None
    return int(use.transposed)


def _of_tokens(ids: Any) -> bool:
    while ids.producer() is not None and ids.producer().op_type in _SAME:
        ids = ids.producer().inputs[0]
    return bool(ids.name == "input_ids")


def _heads(imp: Importing) -> Iterator[Any]:
    """The matrix multiplications that logits come from, without one between."""
    seen, values = set[Any](), [v for v in imp.graph.outputs if v.name == "logits"]
    while values:
        node = values.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if weight_of(node) is not None:
            yield node
        else:
            values += [v for v in node.inputs if v is not None]


def _without_copies(found: list[Matrix]) -> list[Matrix]:
    """Heads that have the embedding's numbers are read from it, so that both have one format and are stored once."""
    tables = [m for m in found if m.roles == {EMBEDDING} and m.axis == 1]
    pairs = [(table, head) for head in found if head.roles == {HEAD} for table in tables]
    for table, head in pairs:
        turned = same_numbers(table.weight.const_value, head.weight.const_value)
        if turned is None or head.axis != (0 if turned else 1) or head not in found:
            continue
        table.uses += [Use(use.node, True) for use in head.uses]
        table.roles.add(HEAD)
        found.remove(head)
    return found
