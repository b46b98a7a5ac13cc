"""Reads an untrusted ONNX file: sizes and paths are checked before anything is read through them.

Weights stay where they are, inside the file or beside it, as memory maps. Constants written as nodes become
initialisers and model-local functions are inlined, so that later passes see one flat graph.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from passes.onnx.load.cache_branch import SWITCH, take_cache_branch
from passes.onnx.load.check_names import check_names, check_printable
from passes.onnx.load.check_nodes import check_nodes
from passes.onnx.load.check_tensors import check_tensors
from passes.onnx.load.mapped_tensor import MappedFile, MappedTensor
from passes.onnx.load.read_proto import read_proto
from passes.onnx.pass_context import describe
from passes.onnx.rewrite.pick_branch import hoist_branches
from passes.onnx.rewrite.sort_nodes import sort_nodes
from targets.errors import UserError
from targets.files import refuse_no_file
from targets.lfs import is_lfs_pointer, lfs_reason

_WITH_PAST = "decoder_with_past_model.onnx"
logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # it warns of files that are refused here, in one line
_OLDEST_OPSET = 13  # before it, Split, Squeeze and ReduceSum had their sizes as attributes
_SAME_OPSET = 17  # until it, operators got types and attributes, and none another meaning


def load(path: Path) -> Any:
    """The `onnx_ir.Model` in a file.

    Raises:
        UserError: no such file, not ONNX, cut short, an external file missing or outside the folder, a weight's
            size disagreeing with its shape, a value that no node makes, or a cycle.
    """
    refuse_no_file(path)
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{str(path)!a}: the file's name is not UTF-8, as names inside ONNX files are: rename it"
        ) from None
    if is_lfs_pointer(path):
        raise UserError(f"{path}: {lfs_reason(path)}")
    try:
        proto = read_proto(path)
    except ValueError as error:
        raise UserError(f"{path}: not an ONNX file, or cut short ({_one_line(error)})") from error
    if not proto.HasField("graph") or not proto.graph.node:
        raise UserError(f"{path}: not an ONNX file: it has no graph")
    check_printable(path, proto)
    _check_opsets(path, proto)
    take_cache_branch(proto)
    check_names(path, proto)
    _check_pulled(path, proto)
    files = check_tensors(path, proto)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnx_ir warns of what it skips; nothing of that is read
            model = ir.from_proto(proto)
        mapped = {location: MappedFile(file) for location, file in files.items()}
        for tensor in model.graph.initializers.values():
            if isinstance(tensor.const_value, ir.ExternalTensor):
                tensor.const_value = MappedTensor(mapped[str(tensor.const_value.location)], tensor.const_value)
        _flatten(model)
        _check_control_flow(path, model)
        sort_nodes(model.graph)
    except UserError:
        raise
    except Exception as error:  # onnx_ir raises many classes for graphs that make no sense
        raise UserError(f"{path}: the graph is malformed ({_one_line(error)})") from error
    check_nodes(path, model)
    opsets = model.graph.opset_imports
    opsets[""] = max(opsets[""], _SAME_OPSET)  # passes write LayerNormalization, and Shape and Reshape with attributes
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


def _check_pulled(path: Path, proto: Any) -> None:
    """No weights file beside the model is a pointer to one that was not downloaded."""
    stated = {e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"}
    for location in sorted(stated):
        file = path.parent / location
        if file.name == location and is_lfs_pointer(file):
            raise UserError(f"{path}: {lfs_reason(file)}")


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
                advice = _without_control_flow(path, model)
                raise UserError(f"{path}: {describe(node)} has a subgraph ({name}); {advice}")


def _without_control_flow(path: Path, model: Any) -> str:
    """What to do about an If; optimum merges the decoder of the first token and the one with a past into one file."""
    beside = path.parent / _WITH_PAST
    if path.name != _WITH_PAST and beside.is_file():
        return f"give {beside}, the same decoder without control flow"
    if any(SWITCH in str(v.name) for v in model.graph.inputs):
        return f"this is a merged decoder: give its {_WITH_PAST}, or export again with optimum's --no-post-process"
    return "export without control flow"
