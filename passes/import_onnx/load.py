"""Reads an ONNX file nobody vouches for: sizes and paths are checked before anything is read through them.

Weights stay where they are, inside the file or beside it, as memory maps. Constants written as nodes become
initialisers and model-local functions are inlined, so that later passes see one flat graph.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from passes.import_onnx.check_names import check_names
from passes.import_onnx.check_nodes import check_nodes
from passes.import_onnx.check_tensors import check_tensors
from passes.import_onnx.pick_branch import hoist_branches
from passes.import_onnx.read_proto import read_proto
from passes.import_onnx.state import describe
from targets.errors import UserError

_OLDEST_OPSET = 13  # before it, Split, Squeeze and ReduceSum had their sizes as attributes


def load(path: Path) -> Any:
    """The `onnx_ir.Model` in a file.

    Raises:
        UserError: no such file, not ONNX, cut short, an external file missing or outside the folder, a weight's
            size disagreeing with its shape, a value nobody makes, or a cycle.
    """
    if path.is_dir():
        raise UserError(f"{path}: this is a folder; give the .onnx file in it")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        proto = read_proto(path)
    except ValueError as error:
        raise UserError(f"{path}: not an ONNX file, or cut short ({_one_line(error)})") from error
    if not proto.HasField("graph") or not proto.graph.node:
        raise UserError(f"{path}: not an ONNX file: it has no graph")
    _check_opsets(path, proto)
    check_names(path, proto)
    check_tensors(path, proto)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnx_ir warns of what it skips; nothing of that is read
            model = ir.from_proto(proto)
        for tensor in model.graph.initializers.values():
            if isinstance(tensor.const_value, ir.ExternalTensor):
                tensor.const_value.base_dir = path.parent
        _flatten(model)
        _check_control_flow(path, model)
        model.graph.sort()
    except UserError:
        raise
    except Exception as error:  # onnx_ir raises many classes for graphs that make no sense
        raise UserError(f"{path}: the graph is malformed ({_one_line(error)})") from error
    check_nodes(path, model)
    return model


def _check_opsets(path: Path, proto: Any) -> None:
    opsets = [(o.domain.replace("ai.onnx", ""), o.version) for o in proto.opset_import]
    opset = dict(opsets).get("", 0)
    if opset < _OLDEST_OPSET:
        raise UserError(f"{path}: opset {opset} is too old; export again with opset 18 or newer")
    if opset > onnx.defs.onnx_opset_version():
        newest = onnx.defs.onnx_opset_version()
        raise UserError(
            f"{path}: opset {opset} is newer than {newest}, the newest that the installed onnx package knows"
        )
    if len(set(opsets)) != len(dict(opsets)):
        raise UserError(f"{path}: an operator set is listed in two versions")


def _one_line(error: Exception) -> str:
    shown = " ".join(str(error).split())[:200] or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in shown)


def _flatten(model: Any) -> None:
    if model.functions:
        common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    model.graph.opset_imports[""] = model.graph.opset_imports.pop("ai.onnx", model.graph.opset_imports.get("", 0))
    model.graph.doc_string = None
    model.graph.metadata_props.clear()  # free text, which need not be text at all
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()
        node.domain = "" if node.domain == "ai.onnx" else node.domain
        node.name = node.name or f"{node.op_type} of {node.outputs[0].name}"
        for value in node.outputs:  # what the file says of types and shapes within the graph may be untrue
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = value.type = None


def _check_control_flow(path: Path, model: Any) -> None:
    for node in model.graph:
        if hoist_branches(model, node):
            continue
        for name, attr in node.attributes.items():
            if attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                raise UserError(f"{path}: {describe(node)} has a subgraph ({name}); export without control flow")
