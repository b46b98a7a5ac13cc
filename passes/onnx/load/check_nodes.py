"""Checks on reading that every node has the inputs, outputs and attributes its operator requires, and no others.

Passes may then read `node.inputs[1]` or a required attribute without asking what it is, and leave aside what
operator_rules.py says has no effect. ONNX's own schemas are used; for onnxruntime's operators, which have none here,
the same table.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from passes.onnx.onnxruntime_rules import FLOATS, TEXTS
from passes.onnx.operator_rule import Must, Range, Rule
from passes.onnx.operator_rules import NAMES, RULES, SWITCHES
from passes.onnx.pass_context import describe
from passes.onnx.rewrite.local_functions import DOMAIN
from targets.errors import UserError

# ONNX's since that opset, and before it onnxruntime's own under the same name: its optimiser writes it in any file
_FROM = {("", "LayerNormalization"): 17}


def check_nodes(path: Path, model: Any) -> None:
    """Check the flattened `onnx_ir.Model` of a file.

    Raises:
        UserError: a node lacks an input, an output or an attribute, or has one that no pass would read.
    """
    opsets = dict(model.graph.opset_imports)
    for node in model.graph:
        where = f"{path}: {describe(node)}"
        for name, attr in node.attributes.items():
            if attr.is_ref():
                raise UserError(f"{where} takes its attribute {name} from a function it is not in")
            if attr.type == ir.AttributeType.FLOAT and not math.isfinite(attr.value):
                raise UserError(f"{where} has {name}={attr.value}")
        rule = RULES.get((node.domain, node.op_type))
        if rule is None and (node.op_type in NAMES or node.domain == DOMAIN):
            raise UserError(f"{where}: there is an operator of that name, but not in that domain; export again")
        if rule is not None and rule.schema == "onnxruntime":
            _check_by_table(where, node, rule)
        else:
            _check_by_schema(where, node, opsets, rule)
        if rule is not None:
            _check_rule(where, node, rule)


def _check_rule(where: str, node: Any, rule: Rule) -> None:
    """Every attribute is in the table, and has one of the values that it must have."""
    for name, attr in node.attributes.items():
        if name not in rule.attributes:
            raise UserError(f"{where} has the attribute {name}, which its operator does not have or no pass reads")
        stated = rule.attributes[name]
        if name in SWITCHES and attr.value not in (0, 1):
            raise UserError(f"{where} has {name}={attr.value}; it is 0 or 1")
        if isinstance(stated, Range) and not stated.least <= attr.value <= stated.most:
            raise UserError(f"{where} has {name}={attr.value}; it may be {stated.least:g} to {stated.most:g}")
        if isinstance(stated, Must) and attr.value not in stated.values:
            allowed = " or ".join(map(str, stated.values))
            raise UserError(f"{where} has {name}={attr.value}; only {allowed} is supported")
    if node.op_type == "Constant" and len(node.attributes) != 1:
        raise UserError(f"{where} has {len(node.attributes)} values; it has one")
    if node.op_type == "Split" and node.attributes.get("num_outputs") is not None:
        if node.attributes["num_outputs"].value != len(node.outputs):
            raise UserError(
                f"{where} has num_outputs={node.attributes['num_outputs'].value}, but {len(node.outputs)} outputs"
            )
    for place, reader in rule.inputs.items():
        if reader is None and place < len(node.inputs) and node.inputs[place] is not None:
            raise UserError(f"{where} has an input {place}, which is not supported")


def _check_by_table(where: str, node: Any, rule: Rule) -> None:
    if node.op_type == "GatherBlockQuantized" and len(node.inputs) == 2:
        raise UserError(
            f"{where} has 2 inputs: the builder left out the scales, so onnxruntime cannot load it either; build it "
            "with --extra_options is_symmetric=true, or is_symmetric=false shared_embeddings=false"
        )
    given = next((place for place in range(rule.required) if place in rule.inputs), rule.required)
    _check_inputs(where, node.inputs, given, rule.required, rule.most_inputs)
    for name in rule.needed:
        if name not in node.attributes:
            raise UserError(f"{where} lacks the attribute {name}")
    for name, attr in node.attributes.items():
        kind = "FLOAT" if name in FLOATS else "STRING" if name in TEXTS else "INT"
        if attr.type.name != kind:
            raise UserError(f"{where} has {name} as {attr.type.name}, it takes {kind}")


def _check_by_schema(where: str, node: Any, opsets: dict[str, int], rule: Rule | None) -> None:
    opset = max(opsets.get(node.domain, 1), _FROM.get((node.domain, node.op_type), 1))
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except Exception as error:  # onnx's SchemaError
        if rule is not None:
            raise UserError(f"{where}: opset {opset} has no such operator; export again") from error
        return  # an unknown operator is refused later, with a better reason
    _check_inputs(where, node.inputs, schema.min_input, schema.min_input, schema.max_input)
    if not schema.min_output <= len(node.outputs) <= schema.max_output:
        raise UserError(f"{where} has {len(node.outputs)} outputs")
    for name in node.attributes:
        if name not in schema.attributes:
            raise UserError(
                f"{where} has the attribute {name}, which it does not have in opset {opset}{_raised(node, name, opset)}"
            )
    for name, stated in schema.attributes.items():
        if name in node.attributes and int(node.attributes[name].type) != int(stated.type.value):
            raise UserError(f"{where} has {name} as {node.attributes[name].type.name}, it takes {stated.type.name}")
        if stated.required and name not in node.attributes:
            raise UserError(f"{where} lacks the attribute {name}")


def _raised(node: Any, attribute: str, opset: int) -> str:
    """What to do where an earlier opset had the attribute: onnxruntime's QDQ quantisers raise the file's alone."""
    for earlier in range(opset - 1, 0, -1):
        try:
            known = onnx.defs.get_schema(node.op_type, earlier, node.domain).attributes
        except Exception:  # onnx's SchemaError: there was no such operator
            return ""
        if attribute in known:
            return f": opset {earlier} had it, and a tool raised the file's; export at opset {opset} before it"
    return ""


def _check_inputs(where: str, inputs: Any, given: int, least: int, most: int) -> None:
    if not least <= len(inputs) <= most:
        raise UserError(f"{where} has {len(inputs)} inputs, its operator takes {least} to {most}")
    if any(v is None for v in inputs[:given]):
        raise UserError(f"{where} leaves out an input its operator requires")
