"""The safetensors header: which tensors lie where in the file; written by us, read as untrusted input.

A file is an 8-byte little-endian header length, a JSON header padded with spaces, and the tensors without holes.
Ours starts every tensor at a multiple of 64 bytes, for zero-copy tensors and vector loads, by tensors named
``__pad.N`` of unused bytes where a size is no multiple of 64.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from targets.errors import UserError

ALIGNMENT_BYTES = 64
PAD_PREFIX = "__pad."
MAX_HEADER_BYTES = 100_000_000

# our dtype name -> (safetensors name, numpy type of the view); numpy has no bfloat16, its bits are shown as uint16
DTYPES = {
    "float64": ("F64", "<f8"),
    "float32": ("F32", "<f4"),
    "float16": ("F16", "<f2"),
    "bfloat16": ("BF16", "<u2"),
    "int64": ("I64", "<i8"),
    "int32": ("I32", "<i4"),
    "int16": ("I16", "<i2"),
    "int8": ("I8", "|i1"),
    "uint64": ("U64", "<u8"),
    "uint32": ("U32", "<u4"),
    "uint16": ("U16", "<u2"),
    "uint8": ("U8", "|u1"),
    "bool": ("BOOL", "|b1"),
}
_NAMES = {short: (name, view) for name, (short, view) in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor: its dtype by our name, its shape, and the file offset of its first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def view_dtype(self) -> str:
        """The numpy type its bytes are shown as."""
        return DTYPES[self.dtype][1]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * int(self.view_dtype[2:])


def lay_out(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[Entry]]:
    """Return the head of the file and its entries in order, pads included, every tensor aligned.

    Args:
        tensors: (name, dtype, shape), in the order of the file.
        metadata: text to keep in the header.

    Raises:
        ValueError: a name twice or reserved, or a dtype that safetensors does not have.
    """
    relative: list[Entry] = []
    end = 0
    for name, dtype, shape in tensors:
        if name == "__metadata__" or name.startswith(PAD_PREFIX):
            raise ValueError(f"tensor name {name!r} is reserved")
        if dtype not in DTYPES:
            raise ValueError(f"tensor {name!r}: dtype {dtype!r} cannot be stored")
        relative.append(Entry(name, dtype, tuple(int(n) for n in shape), end))
        end += relative[-1].nbytes
        if gap := -end % ALIGNMENT_BYTES:
            relative.append(Entry(f"{PAD_PREFIX}{len(relative)}", "uint8", (gap,), end))
            end += gap
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    for entry in relative:
        if entry.name in header:
            raise ValueError(f"tensor name {entry.name!r} appears twice")
        header[entry.name] = {
            "dtype": DTYPES[entry.dtype][0],
            "shape": list(entry.shape),
            "data_offsets": [entry.offset, entry.offset + entry.nbytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT_BYTES)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, [Entry(e.name, e.dtype, e.shape, start + e.offset) for e in relative]


def read_header(file: BinaryIO, size: int, where: str) -> tuple[list[Entry], dict[str, str]]:
    """Check and return the entries, by rising offset and without pads, and the metadata of a safetensors file.

    Args:
        file: open at its start.
        size: of the file in bytes; everything the header says is held against it before anything is allocated.
        where: name of the file for messages.

    Raises:
        UserError: the file is not well-formed.
    """

    def refuse(reason: str) -> UserError:
        return UserError(f"{where} is not a valid safetensors file: {reason}")

    head = file.read(8)
    if len(head) < 8:
        raise refuse("shorter than its 8-byte header length")
    (length,) = struct.unpack("<Q", head)
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise refuse(f"header length {length} does not fit the file of {size} bytes")
    try:
        header = json.loads(file.read(length).decode("utf-8"))
    except (ValueError, RecursionError):
        raise refuse("the header is not JSON") from None
    if not isinstance(header, dict):
        raise refuse("the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise refuse("__metadata__ is not an object of strings")

    entries = []
    for name, item in header.items():
        problem = _problem(item)
        if problem:
            raise refuse(f"tensor {name!r}: {problem}")
        entries.append(
            Entry(name, _NAMES[item["dtype"]][0], tuple(item["shape"]), 8 + length + item["data_offsets"][0])
        )
    entries.sort(key=lambda e: (e.offset, e.nbytes))
    end = 8 + length
    for entry in entries:
        if entry.offset != end:
            raise refuse(f"tensor {entry.name!r} overlaps another one or leaves a hole before it")
        end += entry.nbytes
    if end != size:
        raise refuse(f"the tensors end at byte {end}, the file at {size}")
    return [e for e in entries if not e.name.startswith(PAD_PREFIX)], metadata


def _problem(item: Any) -> str | None:
    """Return what is wrong with one tensor's description, or None."""
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        return "it needs dtype, shape and data_offsets and nothing else"
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _NAMES:
        return f"dtype {dtype!r} is not supported"
    if not _naturals(shape) or len(shape) > 32:
        return "its shape is not a list of up to 32 natural numbers"
    if not _naturals(offsets) or len(offsets) != 2:
        return "its data_offsets are not two natural numbers"
    if offsets[1] - offsets[0] != math.prod(shape) * int(_NAMES[dtype][1][2:]):
        return "its data_offsets do not agree with its dtype and shape"
    return None


def _naturals(value: Any) -> bool:
    """True for a list of natural numbers below 2**63."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
