"""Inputs and outputs whose names or types say little -> those that normalise_io_names knows.

    tokens int32 -> Cast -> Gather    ->  input_ids int64 -> Gather
    past.0, past.1 (of any names)     ->  past_key_values.0.key, past_key_values.0.value, by what reads them
    output_0                          ->  logits, where it is the only output that is no cache
    num_logits_to_keep                ->  0, which is all of them

An integer input that nothing reads (token_type_ids) is dropped. What is named is checked by later passes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, add_initializer, attribute, emit, replace_uses
from passes.onnx.prove.cache_roles import cache_roles
from passes.onnx.prove.weight_expression import is_weight
from passes.onnx.rewrite.normalise_io_names import INTEGERS, known_input, known_output

_TABLES = ("Gather", "GatherBlockQuantized")
_WORDS = (("mask", "attention_mask"), ("pos", "position_ids"))
_TO_KEEP = ("num_logits_to_keep", "logits_to_keep")
_NUMBERS = (ir.DataType.INT64, ir.DataType.INT32)


def plain_inputs(imp: Importing) -> PassLog:
    """Drop, name and cast back."""
    graph = imp.graph
    unknown = [v for v in graph.inputs if known_input(v) is None and v.dtype in _NUMBERS]
    unused = [v for v in unknown if not v.uses() and not v.is_graph_output()]
    for value in unused:
        graph.inputs.remove(value)
    notes = tuple(f"nothing reads the input {v.name}" for v in unused)
    kept = sum(_keep_all(imp, v) for v in list(graph.inputs) if v.name in _TO_KEEP)
    named = sum(_name_integer(imp, v) for v in list(graph.inputs) if known_input(v) is None)
    named += _name_caches(imp) + _name_logits(imp)
    cast = sum(_cast_back(v) for v in graph.inputs if known_input(v) in INTEGERS)
    return PassLog("plain_inputs", len(unused) + kept + named + cast, notes)


def _keep_all(imp: Importing, value: Any) -> bool:
    """Transformers slices from minus that number on, so that 0 keeps the logits of all tokens."""
    if value.dtype not in _NUMBERS or value.shape is None or value.shape not in ((), (1,)):
        return False
    imp.graph.inputs.remove(value)
    zero = add_initializer(imp.graph, f"{value.name}.all", np.zeros(tuple(value.shape), value.dtype.numpy()))
    replace_uses(value, zero)
    return True


def _name_integer(imp: Importing, value: Any) -> bool:
    if value.shape is None or len(value.shape) != 2:
        return False
    name = next((n for word, n in _WORDS if word in value.name.lower()), None)
    if name is None and value.dtype in _NUMBERS and _chooses_rows(value):
        name = "input_ids"
    if name is None or any(known_input(v) == name for v in imp.graph.inputs):
        return False
    value.name = name
    return True


def _chooses_rows(value: Any) -> bool:
    """Whether rows of a weight are chosen by it, and nothing is computed of it."""
    nodes = [(node, i) for node, i in value.uses() if node.op_type != "Shape"]
    for node, i in nodes:
        if node.op_type in ("Cast", "Reshape"):
            if i or not _chooses_rows(node.outputs[0]):
                return False
        elif node.op_type not in _TABLES or i != 1 or not is_weight(node.inputs[0]):
            return False
    return bool(nodes)


def _name_caches(imp: Importing) -> int:
    """Name the caches, all of them or none."""
    inputs = [v for v in imp.graph.inputs if v.shape is not None and len(v.shape) == 4]
    if not inputs or all(known_input(v) for v in inputs):
        return 0
    roles = cache_roles(imp, inputs)
    for (layer, kind), (past, present) in roles.items():
        past.name, present.name = f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}"
    return len(roles)


def _name_logits(imp: Importing) -> int:
    rest = [v for v in imp.graph.outputs if known_output(v) is None]
    if len(rest) != 1 or any(known_output(v) == "logits" for v in imp.graph.outputs):
        return 0
    rest[0].name = "logits"
    return 1


def _cast_back(value: Any) -> int:
    """Make an input that is cast to int64 an int64 one; it has whole numbers in any type."""
    readers = [(node, i) for node, i in value.uses() if node.op_type != "Shape"]
    casts = [node for node, _ in readers if node.op_type == "Cast" and attribute(node, "to") == ir.DataType.INT64]
    if value.dtype == ir.DataType.INT64 or any(node.outputs[0].is_graph_output() for node in casts):
        return 0
    if readers and not casts:
        return 0
    for node, i in readers:
        if node in casts:
            replace_uses(node.outputs[0], value)
        elif node.op_type != "Cast":
            node.replace_input_with(i, emit(node, "Cast", [value], {"to": int(value.dtype)}).outputs[0])
    value.dtype = ir.DataType.INT64
    return len(casts)
