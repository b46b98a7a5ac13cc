"""Checks at the door that every node has the inputs, outputs and attributes its operator requires.

Passes may then read `node.inputs[1]` or a required attribute without asking what it is. ONNX's own schemas are used;
for onnxruntime's operators, which have none here, a table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from passes.import_onnx.state import describe
from targets.errors import UserError

# operator: (inputs that must be given, the most inputs, required attributes)
_ONNXRUNTIME: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "SimplifiedLayerNormalization": (2, 3, ()),
    "SkipSimplifiedLayerNormalization": (3, 4, ()),
    "SkipLayerNormalization": (3, 5, ()),
    "GroupQueryAttention": (1, 99, ("num_heads", "kv_num_heads")),
    "MultiHeadAttention": (1, 99, ("num_heads",)),
    "RotaryEmbedding": (4, 4, ()),
    "MatMulNBits": (3, 6, ("K", "N", "block_size")),
    "GatherBlockQuantized": (3, 4, ()),
    "QuickGelu": (1, 1, ()),
    "FusedMatMul": (2, 2, ()),
    "FastGelu": (1, 2, ()),
    "BiasGelu": (2, 2, ()),
    "Gelu": (1, 1, ()),
}
_LENGTHS_AND_CACHE = {"GroupQueryAttention": 7}
_FLOATS = {"epsilon", "scale", "softcap", "alpha", "mask_filter_value", "scale_base"}
_TEXTS = {"k_quant_type", "v_quant_type", "approximate"}
_POSITIVE = {"num_heads", "kv_num_heads", "q_num_heads", "K", "N", "block_size", "num_outputs"}
_RANGES = {"bits": (1, 8), **dict.fromkeys(_POSITIVE, (1, (1 << 31) - 1))}


def check_nodes(path: Path, model: Any) -> None:
    """Check the flattened `onnx_ir.Model` of a file.

    Raises:
        UserError: a node lacks an input, an output or an attribute, or has one of the wrong kind.
    """
    opsets = dict(model.graph.opset_imports)
    for node in model.graph:
        where = f"{path}: {describe(node)}"
        for name, attr in node.attributes.items():
            if attr.is_ref():
                raise UserError(f"{where} takes its attribute {name} from a function it is not in")
            least, most = _RANGES.get(name, (None, None))
            if node.op_type == "RotaryEmbedding":  # 0: it is in the shape
                least = 0
            if most is not None and attr.type == ir.AttributeType.INT and not least <= attr.value <= most:
                raise UserError(f"{where} has {name}={attr.value}")
        if node.op_type in _ONNXRUNTIME and (node.domain or node.op_type not in ("RotaryEmbedding", "Gelu")):
            _check_by_table(where, node)
        else:
            _check_by_schema(where, node, opsets)


def _check_by_table(where: str, node: Any) -> None:
    required, most, names = _ONNXRUNTIME[node.op_type]
    if node.op_type == "GatherBlockQuantized" and len(node.inputs) == 2:
        raise UserError(
            f"{where} has 2 inputs: the builder left out the scales, so onnxruntime cannot load it either; build it "
            "with --extra_options is_symmetric=true, or is_symmetric=false shared_embeddings=false"
        )
    _check_inputs(where, node.inputs, required, _LENGTHS_AND_CACHE.get(node.op_type, required), most)
    for name in names:
        if name not in node.attributes:
            raise UserError(f"{where} lacks the attribute {name}")
    for name, attr in node.attributes.items():
        kind = "FLOAT" if name in _FLOATS else "STRING" if name in _TEXTS else "INT"
        if attr.type.name != kind and name not in ("norm_epsilon", "qk_norm_epsilon"):
            raise UserError(f"{where} has {name} as {attr.type.name}, it takes {kind}")


def _check_by_schema(where: str, node: Any, opsets: dict[str, int]) -> None:
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    except Exception:  # onnx's SchemaError: an operator nobody knows is refused later, with a better reason
        return
    _check_inputs(where, node.inputs, schema.min_input, schema.min_input, schema.max_input)
    if not schema.min_output <= len(node.outputs) <= schema.max_output:
        raise UserError(f"{where} has {len(node.outputs)} outputs")
    for name, stated in schema.attributes.items():
        if name in node.attributes and int(node.attributes[name].type) != int(stated.type.value):
            raise UserError(f"{where} has {name} as {node.attributes[name].type.name}, it takes {stated.type.name}")
        if stated.required and name not in node.attributes:
            raise UserError(f"{where} lacks the attribute {name}")


def _check_inputs(where: str, inputs: Any, given: int, least: int, most: int) -> None:
    if not least <= len(inputs) <= most:
        raise UserError(f"{where} has {len(inputs)} inputs, its operator takes {least} to {most}")
    if any(v is None for v in inputs[:given]):
        raise UserError(f"{where} leaves out an input its operator requires")
