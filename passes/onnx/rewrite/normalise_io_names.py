"""Gives graph inputs and outputs their canonical names, order and dimension names.

Exporters call the same cache past_key_values.0.key, past_key_0, past.0.key or past_0_key.
After: input_ids, attention_mask and position_ids (if there), past_key_values.{i}.key / .value ->
logits, present.{i}.key / .value, layer by layer. Further outputs (hidden states) are dropped.
"""

from __future__ import annotations

import re
from typing import Any

import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog
from targets.errors import UserError

INTEGERS = ("input_ids", "attention_mask", "position_ids")
_KINDS = [  # what an input's name tells of the model
    ("encoder", " (encoder-decoder models are not supported)"),
    ("decoder_input", " (encoder-decoder models are not supported)"),
    ("cross", " (encoder-decoder models are not supported)"),
    ("conv", " (recurrent and hybrid models are not supported)"),
    ("ssm", " (recurrent and hybrid models are not supported)"),
    ("state", " (recurrent and hybrid models are not supported)"),
    ("pixel", " (images are not supported)"),
    ("per_layer", " (a Gemma 3n in one piece with its embeddings is supported)"),
    ("embeds", " (models split from their embedding are not supported)"),
]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_TYPES = {
    "input_ids": (ir.DataType.INT64, ir.DataType.INT32),
    "position_ids": (ir.DataType.INT64, ir.DataType.INT32),
    "attention_mask": (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, *_FLOATS),
}
_MOST_BATCH, _MOST_SIZE = 256, 4096  # fixed sizes of inputs: rows, and heads and their widths
_FREE = {
    "input_ids": ("batch", "sequence_length"),
    "attention_mask": ("batch", "total_sequence_length"),
    "position_ids": ("batch", "sequence_length"),
}


def normalise_io_names(imp: Importing) -> PassLog:
    """Rename, order and check what goes in and out.

    Raises:
        UserError: an unknown input, no cache (exported without past), or a fixed sequence length.
    """
    graph = imp.graph
    before = [v.name for v in (*graph.inputs, *graph.outputs)]
    found: dict[str, Any] = {}
    for value in graph.inputs:
        name = known_input(value)
        rank = None if value.shape is None else len(value.shape)
        if name is None or name in found or rank != (2 if name in INTEGERS else 4):
            kind = next((text for word, text in _KINDS if word in str(value.name).lower()), "")
            if "mask" in str(value.name) and rank == 4:
                kind = " (a mask has one number for each token of the text, [batch, tokens])"
            raise UserError(
                f"input {value.name!r} of rank {rank} is none of input_ids, attention_mask, position_ids or a "
                f"key/value cache{kind}; export the plain text-generation-with-past decoder"
            )
        found[name] = value
    if "input_ids" not in found:
        raise UserError("the model has no input_ids; export the plain text-generation-with-past decoder")
    layers = _layers(found, "past_key_values")
    made: dict[str, Any] = {}
    dropped = []
    for value in graph.outputs:
        name = known_output(value)
        if name is None or name in made:
            dropped.append(value.name)
        else:
            made[name] = value
    if "logits" not in made:
        raise UserError(f"the model has no output named logits (it has {', '.join(v.name for v in graph.outputs)})")
    if layers == 0:
        for name in [n for n in made if n != "logits"]:  # a graph that starts a text and cannot go on with it
            value = made.pop(name)
            dropped.append(value.name)
            value.name = f"{value.name}.exported"  # add_cache gives the name to another value
    elif _layers(made, "present") != layers:
        raise UserError(f"the model takes caches of {layers} layers and gives back another number")
    _reorder(graph.inputs, found, layers, "past_key_values")
    _reorder(graph.outputs, made, layers, "present")
    _name_dimensions(imp, found, made)
    after = [v.name for v in (*graph.inputs, *graph.outputs)]
    notes = (f"dropped the outputs {', '.join(dropped)}",) if dropped else ()
    return PassLog("normalise_io_names", sum(a != b for a, b in zip(before, after, strict=False)), notes)


def known_input(value: Any) -> str | None:
    """The canonical name of an input, by its own."""
    return next((n for n in INTEGERS if n in str(value.name)), None) or _cache_name(value.name, "past_key_values")


def known_output(value: Any) -> str | None:
    """The canonical name of an output, by its own."""
    return "logits" if "logits" in str(value.name) else _cache_name(value.name, "present")


def _cache_name(name: str, prefix: str) -> str | None:
    """past_key_values.0.key, past_key_0, past.0.key, ... -> prefix.0.key."""
    rest = re.sub(r"past_key_values?(?=[._]\d)|key_values?(?=[._]\d)", "", name.lower())
    layer = re.search(r"\d+", rest)
    kind = re.search(r"key|value|(?<![a-z])[kv](?![a-z])", re.sub(r"past_key_values?$", "", rest))
    if layer is None or kind is None or not re.search(r"past|present|cache|key|value", name.lower()):
        return None
    return f"{prefix}.{int(layer.group())}.{'key' if kind.group()[0] == 'k' else 'value'}"


def _layers(found: dict[str, Any], prefix: str) -> int:
    which = "inputs" if prefix.startswith("past") else "outputs"
    caches = {n for n in found if n.startswith(prefix)}
    layers = len(caches) // 2
    expected = {f"{prefix}.{i}.{kind}" for i in range(layers) for kind in ("key", "value")}
    if caches != expected:
        raise UserError(f"the {which} have the caches {', '.join(sorted(caches))}, not a key and a value per layer")
    return layers


def _reorder(values: Any, found: dict[str, Any], layers: int, prefix: str) -> None:
    order = [*INTEGERS, "logits", *(f"{prefix}.{i}.{kind}" for i in range(layers) for kind in ("key", "value"))]
    kept = [(name, found[name]) for name in order if name in found]
    del values[:]
    for k, (_, value) in enumerate(kept):  # two steps: a new name may still be another value's old one
        value.name = f"renamed_{prefix}_{k}"
    for name, value in kept:
        value.name = name
        values.append(value)


def _check_inputs(found: dict[str, Any]) -> None:
    """Element types and fixed sizes are those of a decoder."""
    for name, value in found.items():
        kind = "a cache" if name.startswith("past") else name
        if value.dtype not in _TYPES.get(name, _FLOATS):
            shown = "no" if value.dtype is None else value.dtype.name
            raise UserError(f"{name} has {shown} element type; {kind} has {_TYPES.get(name, _FLOATS)[0].name}")
        for dim, most in zip(value.shape, (_MOST_BATCH, _MOST_SIZE, _MOST_SIZE, _MOST_SIZE), strict=False):
            if isinstance(dim, int) and not 1 <= dim <= most:
                raise UserError(f"{name} has a dimension of {dim}; {kind} has 1 to {most} there")


def _name_dimensions(imp: Importing, found: dict[str, Any], made: dict[str, Any]) -> None:
    _check_inputs(found)
    batch = found["input_ids"].shape[0]
    batch = batch if isinstance(batch, int) else None
    first = found.get("past_key_values.0.key")
    cache = (None,) * 4 if first is None else first.shape
    if first is not None and not isinstance(cache[1], int):
        raise UserError("the number of key/value heads is not fixed in the cache inputs; export with a fixed one")
    for name, value in found.items():
        free = _FREE.get(name, ("batch", cache[1], "past_sequence_length", cache[3]))
        for axis, dim in enumerate(free):
            if dim in _FREE["attention_mask"] + ("sequence_length", "past_sequence_length") and axis:
                if isinstance(value.shape[axis], int):
                    raise UserError(f"{name} has the fixed length {value.shape[axis]}; export with dynamic axes")
        value.shape = ir.Shape([batch or "batch", *free[1:]])
    for name, value in made.items():
        last = value.shape[-1] if value.shape is not None and len(value.shape) else None
        tail = ["sequence_length", last] if name == "logits" else [cache[1], "total_sequence_length", cache[3]]
        value.shape = ir.Shape([batch or "batch", *tail])
    facts = imp.facts
    facts.batch, facts.no_cache = batch, first is None
    facts.layers = sum(n.endswith(".key") for n in found)
    facts.kv_heads, facts.head_dim = (dim if isinstance(dim, int) else 0 for dim in (cache[1], cache[3]))
