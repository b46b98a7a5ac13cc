"""Names of weight formats that a question may use for a config.json: ``int4``, ``int8:64``, ``q4_0``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from costmodel.format import Format
from targets.errors import UserError

BLOCK = 32
_PLAIN = {"float32": Format("float32"), "float16": Format("float16")}
_BLOCKED = ("int8", "int4", "int2")
_GGUF = {"q8_0": ("int8", "int8"), "q4_0": ("int4", "int8")}  # layers, head: llama.cpp keeps the head of Q4_0 in Q8_0
FORMAT_NAMES = (*_PLAIN, *_BLOCKED, *_GGUF)
_LARGEST_BLOCK = 1 << 16


@dataclass(frozen=True)
class StoredAs:
    """How a model's matrices are stored.

    Attributes:
        name: for people: ``int4``, ``int4, head int8``.
        layers: of the layers' matrices, and of an embedding of its own.
        head: of the head; where embedding and head are one matrix, of that.
    """

    name: str
    layers: Format
    head: Format


def stored_as(weights: str, head: str | None = None) -> StoredAs:
    """The formats that the values of --weights and --head name.

    A value is one of FORMAT_NAMES; those of integers may end in ``:N``, the weights that share a float16 scale (32
    where nothing is said). ``q4_0`` and ``q8_0`` count bytes as GGUF files of that name store them: 18 and 34 bytes for
    32 weights, the head in Q8_0.

    Raises:
        UserError: a name that is not known, or a block that is no number of weights.
    """
    layers, own_head = (_format(name, "--weights") for name in _GGUF.get(weights, (weights, weights)))
    name = weights
    if head is not None:
        own_head = _format(_GGUF[head][1] if head in _GGUF else head, "--head")
        name = f"{weights}, head {head}"
    return StoredAs(name, layers, own_head)


def format_text(stored: Format) -> str:
    """For people: ``int4 in blocks of 32 with float16 scales``."""
    return (
        f"{stored.dtype} in blocks of {stored.block} with {stored.scale_dtype} scales" if stored.block else stored.dtype
    )


def _format(text: str, option: str) -> Format:
    found = re.fullmatch(r"([a-z0-9]+)(?::([0-9]{1,6}))?", text)
    name, block = (found[1], found[2]) if found else (text, None)
    if name in _PLAIN and block is None:
        return _PLAIN[name]
    if name not in _BLOCKED:
        known = (*_PLAIN, *_BLOCKED, *(_GGUF if option == "--weights" else ()))
        raise UserError(f"{option} {text!r} is not a format; formats: {', '.join(known)}; integers may end in :BLOCK")
    size = BLOCK if block is None else int(block)
    if not 2 <= size <= _LARGEST_BLOCK:
        raise UserError(f"{option} {text!r}: a block has 2 to {_LARGEST_BLOCK} weights")
    return Format(name, block=size, scale_dtype="float16")
