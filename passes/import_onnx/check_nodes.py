"""Checks at the door that every node has the inputs, outputs and attributes its operator requires.

Passes may then read `node.inputs[1]` or a required attribute without asking. ONNX's own schemas are used; for
onnxruntime's operators, which have none here, a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from targets.errors import UserError

# operator: (inputs that must be given, required attributes)
_ONNXRUNTIME: dict[str, tuple[int, tuple[str, ...]]] = {
    "SimplifiedLayerNormalization": (2, ()),
    "SkipSimplifiedLayerNormalization": (3, ()),
    "GroupQueryAttention": (1, ("num_heads", "kv_num_heads")),
    "MultiHeadAttention": (1, ("num_heads",)),
    "RotaryEmbedding": (4, ()),
    "MatMulNBits": (3, ("K", "N", "block_size")),
    "GatherBlockQuantized": (3, ()),
    "QuickGelu": (1, ()),
}
_LENGTHS_AND_CACHE = {"GroupQueryAttention": 7}


def check_nodes(path: Path, proto: Any) -> None:
    """Check a ModelProto.

    Raises:
        UserError: a node lacks an input, output or attribute, or reads a value that nothing makes.
    """
    opsets = {o.domain.replace("ai.onnx", ""): o.version for o in proto.opset_import}
    functions = {(f.domain, f.name) for f in proto.functions}
    made = {v.name for v in proto.graph.input} | {t.name for t in proto.graph.initializer} | {""}
    made |= {name for node in proto.graph.node for name in node.output}
    for node in proto.graph.node:
        where = f"{path}: {node.domain or 'ai.onnx'}.{node.op_type} (node {node.name or node.output[:1]!r})"
        for name in node.input:
            if name not in made:
                raise UserError(f"{where} reads {name!r}, which nothing in the file makes")
        if not node.output:
            raise UserError(f"{where} has no output")
        if (node.domain, node.op_type) not in functions:
            _check(where, node, opsets)
    for output in proto.graph.output:
        if output.name not in made:
            raise UserError(f"{path}: the output {output.name!r} is made by nothing in the file")


def _check(where: str, node: Any, opsets: dict[str, int]) -> None:
    domain = node.domain.replace("ai.onnx", "")
    attributes = {a.name for a in node.attribute}
    if node.op_type in _ONNXRUNTIME and (domain or node.op_type != "RotaryEmbedding"):
        required, names = _ONNXRUNTIME[node.op_type]
        _check_inputs(where, node.input, required, _LENGTHS_AND_CACHE.get(node.op_type, required), 99)
    else:
        try:
            schema = onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
        except Exception:  # onnx's SchemaError: an operator nobody knows is refused later, with a better reason
            return
        names = tuple(n for n, a in schema.attributes.items() if a.required)
        _check_inputs(where, node.input, schema.min_input, schema.min_input, schema.max_input)
        if not schema.min_output <= len(node.output) <= schema.max_output:
            raise UserError(f"{where} has {len(node.output)} outputs")
    for name in names:
        if name not in attributes:
            raise UserError(f"{where} lacks the attribute {name}")


def _check_inputs(where: str, inputs: Sequence[str], given: int, least: int, most: int) -> None:
    if not least <= len(inputs) <= most:
        raise UserError(f"{where} has {len(inputs)} inputs, its operator takes {least} to {most}")
    if not all(inputs[:given]):
        raise UserError(f"{where} leaves out an input its operator requires")
