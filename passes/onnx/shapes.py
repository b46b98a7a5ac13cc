"""Shapes of every value at concrete sizes, so that no pass has to understand an exporter's shape arithmetic.

Symbolic inference gives up on Range, Expand by computed shapes and the like. Here the free dimensions get numbers
(batch 2, 3 new tokens, 5 past ones, say); integers are then computed, everything else is inferred node by node by
ONNX's own rules. Two such points with different numbers tell a constant dimension from a free one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from passes.onnx.operator_rules import RULES
from passes.onnx.pass_context import Importing, attribute, constant
from passes.onnx.rewrite.local_functions import DOMAIN
from passes.onnx.shape_rules import SHAPE_RULES, TYPED_LIKE

_MOST_ELEMENTS = 4096  # values computed, not only inferred: shapes and short ranges


@dataclass(frozen=True)
class Point:
    """Numbers for the free dimensions: batch, new tokens, past tokens."""

    batch: int
    new: int
    past: int


@dataclass(frozen=True)
class Known:
    """What is known of a value at a point."""

    dtype: int
    shape: tuple[int, ...]
    data: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


def points(imp: Importing) -> tuple[Point, Point]:
    """Two points at which every free dimension differs and no two dimensions coincide."""
    batch = imp.facts.batch
    pasts = (0, 0) if imp.facts.no_cache else (11, 23)  # the exported arithmetic knows of no past
    return Point(batch or 2, 7, pasts[0]), Point(batch or 3, 13, pasts[1])


def input_shape(imp: Importing, name: str, at: Point) -> tuple[int, ...]:
    """Shape of a (normalised) graph input at a point."""
    if name.startswith("past_key_values."):
        kv_heads, head_dim = imp.facts.kv_heads, imp.facts.head_dim
        return (at.batch, kv_heads, at.past, head_dim)
    return (at.batch, at.past + at.new if name == "attention_mask" else at.new)


def known_shapes(imp: Importing, at: Point) -> dict[Any, Known]:
    """Shape and type of every value that ONNX's rules reach, at concrete sizes."""
    known: dict[Any, Known] = {}
    for value in imp.graph.inputs:
        known[value] = input_known(imp, value, input_shape(imp, value.name, at))
    for value in imp.graph.initializers.values():
        known[value] = constant_known(imp, value)
    for node in imp.graph:
        infer(imp, node, known)
    return known


def input_known(imp: Importing, value: Any, shape: tuple[int, ...]) -> Known:
    """What is known of a graph input or a cut of that shape; always the same object, so that `infer` remembers."""
    key = (value, int(value.dtype or ir.DataType.FLOAT), shape)
    return imp.remembered.setdefault(key, Known(key[1], shape))


def constant_known(imp: Importing, value: Any) -> Known:
    """What is known of an initialiser, its numbers if they are few."""
    tensor = value.const_value
    if (value, tensor) not in imp.remembered:
        shape = tuple(int(d) for d in tensor.shape)
        imp.remembered[value, tensor] = Known(int(tensor.dtype), shape, constant(value))
    found: Known = imp.remembered[value, tensor]
    return found


def infer(imp: Importing, node: Any, known: dict[Any, Known]) -> None:
    """Add what a node makes to `known`, if ONNX's rules reach it.

    Operators that are not in the table of operator_rules.py are left out: ONNX's rules are C++, where a wrong input can
    end the process.
    The passes ask for the same shapes again and again: an answer is kept with what it was computed from.
    """
    if (node.domain, node.op_type) not in RULES and node.domain != DOMAIN:
        return
    inputs = [None if v is None else known.get(v) for v in node.inputs]
    origin = (*inputs, *node.attributes.values(), imp.graph.opset_imports.get(""))
    answers = imp.remembered.setdefault(node, {})
    key = tuple(map(id, origin))
    if key not in answers:
        _infer(imp, node, known)
        answers[key] = (origin, [known.get(v) for v in node.outputs])
    for output, answer in zip(node.outputs, answers[key][1], strict=True):
        if answer is not None:
            known[output] = answer


def _infer(imp: Importing, node: Any, known: dict[Any, Known]) -> None:
    if node.op_type in SHAPE_RULES:
        deciding, rule = SHAPE_RULES[node.op_type]
        if len(node.inputs) > deciding[-1] and all(node.inputs[i] in known for i in deciding):
            typed_like = node.inputs[TYPED_LIKE.get(node.op_type, 0)]
            for output, shape in zip(node.outputs, rule(node, known), strict=False):
                known[output] = Known(known[typed_like].dtype, tuple(shape))
        return
    if any(v is not None and v not in known for v in node.inputs):
        return
    if node.op_type == "DequantizeLinear" and attribute(node, "block_size", 0):  # by quantise_weights, in any opset
        known[node.outputs[0]] = Known(known[node.inputs[1]].dtype, known[node.inputs[0]].shape)
        return
    inputs = tuple(None if v is None else known[v] for v in node.inputs)
    opsets = tuple(imp.graph.opset_imports.items())
    key = _key(node, inputs, opsets)
    if key is None:
        found = infer_outputs(node, inputs, opsets)
    elif key in _ANSWERS:
        found = _ANSWERS[key]
    else:
        found = infer_outputs(node, inputs, opsets)
        if all(k is None or k.data is None or k.data.size <= _MOST_KEPT for k in found):
            if len(_ANSWERS) >= _MOST_ANSWERS:
                del _ANSWERS[next(iter(_ANSWERS))]
            _ANSWERS[key] = found
    known.update((output, k) for output, k in zip(node.outputs, found, strict=False) if k is not None)


# Layers repeat each other, and so do the exports that a process reads: answers by all that they depend on.
_ANSWERS: dict[Any, list[Known | None]] = {}
_MOST_ANSWERS, _MOST_KEPT = 4096, 64  # answers; numbers of an input or an output that are kept


def _key(node: Any, inputs: tuple[Known | None, ...], opsets: tuple[tuple[str, int], ...]) -> Any:
    """What the outputs of a node depend on, to look it up; None where that is too large, or a graph or a tensor."""
    if any(k is not None and k.data is not None and k.data.size > _MOST_KEPT for k in inputs):
        return None
    attributes = []
    for a in node.attributes.values():
        if not isinstance(a.value, (int, float, str, tuple)):
            return None
        attributes.append((a.name, int(a.type), a.value if isinstance(a.value, tuple) else repr(a.value)))
    given = tuple(k and (k.dtype, k.shape, k.data if k.data is None else k.data.tobytes()) for k in inputs)
    outputs = tuple(v.name == "" for v in node.outputs)  # those that are left out
    return node.domain, node.op_type, opsets, tuple(sorted(attributes)), given, outputs


def infer_outputs(
    node: Any, inputs: tuple[Known | None, ...], opsets: tuple[tuple[str, int], ...]
) -> list[Known | None]:
    """What ONNX's rules say of a node's outputs, None of those that they do not reach."""
    versions = dict(opsets)
    computed = _compute(node, inputs, versions)
    if computed is not None:
        return computed
    unknown: list[Known | None] = [None] * len(node.outputs)
    sizes = inputs[1] if node.op_type == "Split" and len(inputs) > 1 else None
    if sizes is not None and sizes.shape != (len(node.outputs),):  # ONNX's rule would end the process
        return unknown
    if attribute(node, "batch_dims", 0) < 0:  # that of GatherND reads before its shapes
        return unknown
    try:
        schema = onnx.defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain)
    except Exception:  # onnx raises its own SchemaError: an operator it does not know
        return unknown
    named = [(v.name, k) for v, k in zip(node.inputs, inputs, strict=True) if v is not None and k is not None]
    types = {name: onnx.helper.make_tensor_type_proto(k.dtype, k.shape) for name, k in named}
    data = {name: onnx.numpy_helper.from_array(k.data, name) for name, k in named if k.data is not None}
    imports = [onnx.helper.make_opsetid(d, v) for d, v in opsets]
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, ir.serde.serialize_node(node), types, data, opset_imports=imports, ir_version=10
        )
    except Exception:  # InferenceError and friends: this value and all after it stay unknown
        return unknown
    return [_complete(found.get(output.name)) for output in node.outputs]


def _complete(kind: Any) -> Known | None:
    """What a type of ONNX's inference says, if it has every dimension."""
    dims = kind.tensor_type.shape.dim if kind is not None and kind.tensor_type.HasField("shape") else None
    if dims is None or not all(d.HasField("dim_value") for d in dims):
        return None
    return Known(kind.tensor_type.elem_type, tuple(d.dim_value for d in dims))


def _compute(node: Any, inputs: tuple[Known | None, ...], opsets: dict[str, int]) -> list[Known | None] | None:
    """The outputs of a node of small known integers, computed; None where that is not possible."""
    if node.op_type == "Shape" and node.domain == "" and inputs and inputs[0] is not None:
        shape = inputs[0].shape
        numbers = np.array(shape[attribute(node, "start", 0) : attribute(node, "end", len(shape))], np.int64)
        return [Known(int(ir.DataType.INT64), numbers.shape, numbers)]
    if node.domain or not inputs or any(k is not None and (k.data is None) for k in inputs):
        return None
    given = [None if k is None else k.data for k in inputs]
    if not small_result(node, given):
        return None
    try:
        results = run_node(node, given, opsets[""])
    except Exception:  # the reference evaluator lacks an operator or a form of it
        return None
    found: list[Known | None] = []
    for numbers in map(np.asarray, results):
        keep = numbers if numbers.size <= _MOST_ELEMENTS else None
        found.append(Known(onnx.helper.np_dtype_to_tensor_dtype(numbers.dtype), numbers.shape, keep))
    return found


def small_result(node: Any, inputs: list[np.ndarray | None]) -> bool:
    """Whether a node of known numbers makes no more than a few MB: asked before it is computed."""
    sizes = [float(x.size) for x in inputs if x is not None]
    if node.op_type in _SIZED_BY:  # the numbers of one operand are the size
        if node.op_type == "Range":
            start, end, step = (float(x.reshape(-1)[0]) if x is not None and x.size else 0.0 for x in inputs[:3])
            return step != 0 and abs((end - start) / step) <= _MOST_COMPUTED
        numbers = inputs[_SIZED_BY[node.op_type]]
        made = np.prod(np.maximum(np.abs(numbers.astype(np.float64)), 1)) if numbers is not None else 1.0
        sizes.append(float(made))  # may be infinite
    elif node.op_type not in _BOUNDED:
        return False
    return float(np.prod([max(1.0, s) for s in sizes])) <= _MOST_COMPUTED


def run_node(node: Any, inputs: list[np.ndarray | None], opset: int) -> list[np.ndarray]:
    """One ONNX node on numbers, by the reference evaluator."""
    proto = ir.serde.serialize_node(node)
    feeds = {v.name: x for v, x in zip(node.inputs, inputs, strict=True) if v is not None}
    return ReferenceEvaluator(proto, opsets={"": opset}).run(None, feeds)


_MOST_COMPUTED = 1 << 20  # elements that a node may make while shapes are computed
_SIZED_BY = {"Range": 0, "ConstantOfShape": 0, "Expand": 1, "Tile": 1, "OneHot": 1}
# operators whose result has at most as many elements as all operands multiplied
_BOUNDED = {
    *("Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Concat", "Cos", "CumSum", "Div", "Equal", "Erf", "Exp"),
    *("Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "IsInf"),
    *("IsNaN", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow"),
    *("Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape"),
    *("Round", "QuantizeLinear"),
    *("ScatterElements", "ScatterND", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub"),
    *("Sum", "Tanh", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor", "Range", "DequantizeLinear", "NonZero"),
}
