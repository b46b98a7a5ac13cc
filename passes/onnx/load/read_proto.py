"""Parses an ONNX file without its weights: large inline tensors become pointers into the file itself.

A file may hold up to 2 GB of weights inside the protobuf, and the protobuf library reads and copies all of it. Only
three kinds of field matter to avoid that: ModelProto.graph, GraphProto.initializer and TensorProto.raw_data. They are
walked by their lengths; everything else is handed to the library as it is. The pointer uses ONNX's own external data:
location = the file's own name, offset and length of raw_data within it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # field numbers in onnx.proto
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types
_SMALL_BYTES = 1024  # tensors up to this size stay in the parsed message


def read_proto(path: Path) -> Any:
    """The ModelProto of a file, with inline tensors of more than 1 KB replaced by pointers into the file.

    Raises:
        ValueError: the lengths in the file do not add up, or the library cannot parse the rest.
    """
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise ValueError("the file is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            pieces = []
            for number, start, body, end in _fields(data, 0, len(data)):
                if number == _GRAPH:
                    graph = _graph(data, body, end, path.name)
                    pieces.append(_tagged(_GRAPH, graph))
                else:
                    pieces.append(data[start:end])
    return _parsed(onnx.ModelProto, b"".join(pieces))


def _parsed(kind: Any, content: bytes) -> Any:
    message = kind()
    try:
        message.ParseFromString(content)
    except Exception as error:  # protobuf's DecodeError
        raise ValueError(str(error)) from error
    return message


def _graph(data: Any, start: int, end: int, name: str) -> bytes:
    pieces = []
    for number, field, body, after in _fields(data, start, end):
        pieces.append(_initializer(data, field, body, after, name) if number == _INITIALIZER else data[field:after])
    return b"".join(pieces)


def _initializer(data: Any, field: int, start: int, end: int, name: str) -> bytes:
    raw = [(f, body, after) for number, f, body, after in _fields(data, start, end) if number == _RAW_DATA]
    if len(raw) != 1 or raw[0][2] - raw[0][1] <= _SMALL_BYTES:
        return bytes(data[field:end])
    ((f, body, after),) = raw
    tensor = _parsed(onnx.TensorProto, data[start:f] + data[after:end])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", name), ("offset", str(body)), ("length", str(after - body))):
        tensor.external_data.add(key=key, value=value)
    return _tagged(_INITIALIZER, tensor.SerializeToString())


def _tagged(number: int, content: bytes) -> bytes:
    return _as_varint(number << 3 | _LENGTH) + _as_varint(len(content)) + content


def _as_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _fields(data: Any, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, start of the field, start of its content, end) of each field of a message."""
    at = start
    while at < end:
        key, body = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == _LENGTH:
            length, body = _varint(data, body, end)
            after = body + length
        elif wire == _VARINT:
            _, after = _varint(data, body, end)
        elif wire in (_FIXED32, _FIXED64):
            after = body + (4 if wire == _FIXED32 else 8)
        else:
            raise ValueError(f"no field can start at byte {at}")
        if after > end or number == 0:
            raise ValueError(f"the field at byte {at} ends outside its message")
        yield number, at, body, after
        at = after


def _varint(data: Any, at: int, end: int) -> tuple[int, int]:
    """(number, position after it)."""
    value = 0
    for i in range(10):
        if at + i >= end:
            break
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError(f"no length can be read at byte {at}")
