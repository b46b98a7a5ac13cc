"""read_proto.py: what its walk lets through and the protobuf library refuses is the file's fault, too."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from passes.onnx.load.read_proto import read_proto


def field(number: int, content: bytes) -> bytes:
    size = len(content)
    return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7]) + content


@pytest.mark.parametrize("number", [9, 8], ids=["large raw data", "no raw data"])
def test_a_tensor_that_protobuf_refuses(tmp_path: Path, number: int) -> None:
    path = tmp_path / "model.onnx"
    raw = field(number, b"x" * 2000)
    path.write_bytes(field(7, field(5, raw)))
    (tensor,) = read_proto(path).graph.initializer
    assert (tensor.data_location == onnx.TensorProto.EXTERNAL) == (number == 9)
    path.write_bytes(field(7, field(5, raw + b"\x0a\x01\x80")))  # dims, packed, that end within a number
    with pytest.raises(ValueError, match=r"[Pp]ars"):
        read_proto(path)
