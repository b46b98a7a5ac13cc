"""Checks on reading that a tensor's bytes agree with its shape, and that an external file is what it claims to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from passes.onnx.load.check_names import nodes_of
from passes.onnx.load.external_data import external_file
from targets.errors import UserError

_MOST_DIMENSIONS = 16
_MOST_SHARING = 4  # tensors over the same bytes of a file: tied weights share, thousands of tensors do not


def check_tensors(path: Path, proto: Any) -> dict[str, Path]:
    """Check all initialisers of a ModelProto, and the tensors that its nodes and functions carry.

    Returns:
        The file that each location of external data leads to.

    Raises:
        UserError: a size, a type or a place that makes no sense; nothing has been read through it yet.
    """
    claimed: dict[Path, int] = {}
    files: dict[str, Path] = {}
    for tensor in proto.graph.initializer:
        file, length = _check_tensor(path, tensor, files)
        if file is not None:
            claimed[file] = claimed.get(file, 0) + length
    for file, total in claimed.items():
        if total > _MOST_SHARING * file.stat().st_size:
            raise UserError(f"{path}: the tensors claim {total} bytes of {file.name}, which has {file.stat().st_size}")
    if proto.graph.sparse_initializer:
        raise UserError(f"{path}: sparse initialisers are not supported; export dense weights")
    for node in nodes_of(proto):
        for attr in node.attribute:
            graphs = (*([attr.g] if attr.HasField("g") else []), *attr.graphs)
            inner = [t for graph in graphs for t in graph.initializer]
            for tensor in (*([attr.t] if attr.HasField("t") else []), *attr.tensors, *inner):
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    raise UserError(f"{path}: the attribute {attr.name} of node {node.name!r} lies in an external file")
                _check_tensor(path, tensor, files)
    return files


def _check_tensor(path: Path, tensor: Any, files: dict[str, Path]) -> tuple[Path | None, int]:
    """(external file or None, bytes); a new location is added to `files`."""
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {tensor.name} has the unknown element type {tensor.data_type}") from error
    if len(tensor.dims) > _MOST_DIMENSIONS:
        raise UserError(f"{path}: {tensor.name} has {len(tensor.dims)} dimensions")
    elements = 1
    for dim in tensor.dims:
        if dim < 0:
            raise UserError(f"{path}: {tensor.name} has the negative dimension {dim}")
        elements *= dim
    needed = (elements * bits + 7) // 8
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _check_external(path, tensor, needed, files), needed
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != needed:
            raise UserError(f"{path}: {tensor.name} has {len(tensor.raw_data)} bytes, its shape needs {needed}")
    else:
        _check_numbers(path, tensor, elements, bits)
    return None, needed


def _check_numbers(path: Path, tensor: Any, elements: int, bits: int) -> None:
    """A tensor that lists its numbers one by one."""
    numbers = getattr(tensor, onnx.helper.tensor_dtype_to_field(tensor.data_type))
    needed = -(-elements * bits // 8) if bits < 8 else elements
    if len(numbers) != needed:
        raise UserError(f"{path}: {tensor.name} lists {len(numbers)} numbers, its shape needs {needed}")
    try:
        onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: {tensor.name} lists numbers that its element type cannot hold") from error


def _check_external(path: Path, tensor: Any, needed: int, files: dict[str, Path]) -> Path:
    entries = {e.key: e.value for e in tensor.external_data}
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
    except ValueError as error:
        raise UserError(f"{path}: {tensor.name} has an external offset or length that is no number") from error
    location = entries.get("location", "")
    if location not in files:
        files[location] = external_file(path, tensor.name, location)
    file = files[location]
    if length != needed:
        raise UserError(f"{path}: {tensor.name} claims {length} bytes, its shape needs {needed}")
    size = file.stat().st_size
    if offset < 0 or offset + length > size:
        raise UserError(
            f"{path}: {file.name} has {size} bytes, {tensor.name} needs bytes {offset} to {offset + length}; the file "
            "is cut short or of another export"
        )
    return file
