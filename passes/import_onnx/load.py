"""Reads an ONNX file nobody vouches for: sizes and paths are checked before anything is read through them.

Weights stay where they are, inside the file or beside it, as memory maps. Constants written as nodes become
initialisers and model-local functions are inlined, so that later passes see one flat graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from passes.import_onnx.check_nodes import check_nodes
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
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    try:
        proto = read_proto(path)
    except ValueError as error:
        raise UserError(f"{path}: not an ONNX file, or cut short ({_one_line(error)})") from error
    if not proto.HasField("graph") or not proto.graph.node:
        raise UserError(f"{path}: not an ONNX file: it has no graph")
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < _OLDEST_OPSET:
        raise UserError(f"{path}: opset {opset} is too old; export again with opset 18 or newer")
    for tensor in proto.graph.initializer:
        _check_tensor(path, tensor)
    check_nodes(path, proto)
    try:
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
    return model


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _check_tensor(path: Path, tensor: Any) -> None:
    """Sizes agree with the shape, and an external file is inside the folder and long enough."""
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {tensor.name} has the unknown element type {tensor.data_type}") from error
    elements = 1
    for dim in tensor.dims:
        if dim < 0:
            raise UserError(f"{path}: {tensor.name} has the negative dimension {dim}")
        elements *= dim
    needed = (elements * bits + 7) // 8
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        if tensor.HasField("raw_data") and len(tensor.raw_data) != needed:
            raise UserError(f"{path}: {tensor.name} has {len(tensor.raw_data)} bytes, its shape needs {needed}")
        return
    entries = {e.key: e.value for e in tensor.external_data}
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    except ValueError as error:
        raise UserError(f"{path}: {tensor.name} has an external offset or length that is no number") from error
    folder = path.parent.resolve()
    file = (folder / entries.get("location", "")).resolve()
    if folder not in file.parents:
        raise UserError(f"{path}: {tensor.name} points outside the model's folder ({entries.get('location')})")
    if not file.is_file():
        raise UserError(f"{path}: the weights file {entries.get('location')} is missing; copy it beside the model")
    if length != needed:
        raise UserError(f"{path}: {tensor.name} claims {length} bytes, its shape needs {needed}")
    if offset < 0 or offset + length > file.stat().st_size:
        raise UserError(
            f"{path}: {file.name} has {file.stat().st_size} bytes, {tensor.name} needs bytes {offset} to "
            f"{offset + length}; the file is cut short or of another export"
        )


def _flatten(model: Any) -> None:
    if model.functions:
        common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveInitializersFromInputsPass()(model)
    model.graph.opset_imports[""] = model.graph.opset_imports.pop("ai.onnx", model.graph.opset_imports.get("", 0))
    for node in model.graph:
        node.domain = "" if node.domain == "ai.onnx" else node.domain
        node.name = node.name or f"{node.op_type} of {node.outputs[0].name}"


def _check_control_flow(path: Path, model: Any) -> None:
    for node in model.graph:
        for name, attr in node.attributes.items():
            if attr.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                raise UserError(f"{path}: {describe(node)} has a subgraph ({name}); export without control flow")
