"""Edits that give an export's inputs and outputs another form and leave what it computes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

Name = Callable[[int, str], str]  # of a cache, by layer and kind


def retyped(proto: Any, word: str, dtype: int) -> None:
    """Inputs with a word in their name get another type and are cast back."""
    for value in proto.graph.input:
        if word in value.name:
            before = value.type.tensor_type.elem_type
            _read_instead(proto, value.name, helper.make_node("Cast", [value.name], [f"{value.name}_cast"], to=before))
            value.type.tensor_type.elem_type = dtype


def turned(proto: Any, order: tuple[int, ...]) -> None:
    """Caches have their axes in another order, outside."""
    back = [order.index(axis) for axis in range(4)]
    pasts, presents = _caches(proto)
    for value in pasts.values():
        node = helper.make_node("Transpose", [value.name], [f"{value.name}_turned"], perm=back)
        _read_instead(proto, value.name, node)
        _set_dims(value, [_dims(value)[axis] for axis in order])
    for value in presents.values():
        inside = f"{value.name}_inside"
        _renamed(proto, value.name, inside)
        value.name = value.name.removesuffix("_inside")
        proto.graph.node.append(helper.make_node("Transpose", [inside], [value.name], perm=order))
        _set_dims(value, [_dims(value)[axis] for axis in order])


def stacked(proto: Any, every: int) -> None:
    """Each `every` caches, keys and values in turn, are one tensor; 2 are those of a layer."""
    graph = proto.graph
    pasts, presents = _caches(proto)
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "stack_axes"))
    for start in range(0, len(pasts), every):
        group = list(pasts)[start : start + every]
        past, present = (copy.deepcopy(pasts[group[0]]) for _ in range(2))
        past.name, present.name = f"past_{start // every}", f"present_{start // every}"
        parts = []
        for i, place in enumerate(group):
            number = f"stack_{start}_{i}"
            graph.initializer.append(numpy_helper.from_array(np.array(i, np.int64), number))
            node = helper.make_node("Gather", [past.name, number], [f"{past.name}_{i}"], axis=0)
            _read_instead(proto, pasts[place].name, node)
            graph.input.remove(pasts[place])
            parts.append(f"{present.name}_{i}")
            graph.node.append(helper.make_node("Unsqueeze", [presents[place].name, "stack_axes"], [parts[-1]]))
            graph.output.remove(presents[place])
        graph.node.append(helper.make_node("Concat", parts, [present.name], axis=0))
        dims = _dims(past)
        _set_dims(past, [len(group), *dims])
        _set_dims(present, [len(group), *dims[:2], "after", dims[3]])
        graph.input.append(past)
        graph.output.append(present)


def named(proto: Any, past: Name, present: Name, **others: str) -> None:
    """Caches and other inputs and outputs have other names."""
    for value in [*proto.graph.input, *proto.graph.output]:
        cache = re.fullmatch(r"(past_key_values|present)\.(\d+)\.(key|value)", value.name)
        new = others.get(value.name)
        if cache is not None:
            new = (present if cache[1] == "present" else past)(int(cache[2]), cache[3])
        if new is not None:
            _renamed(proto, value.name, new)


def with_input(proto: Any, name: str, dtype: int) -> None:
    """There is an input that nothing reads."""
    proto.graph.input.append(helper.make_tensor_value_info(name, dtype, ["batch", "sequence"]))


def keeping(proto: Any, shape: list[int]) -> None:
    """An input says of how many tokens at the end there are logits, 0 for all, as in transformers."""
    graph, name = proto.graph, "num_logits_to_keep"
    product = next(node for node in graph.node if "logits" in node.output)
    for constant, number in (("keep_one", 1), ("keep_end", (1 << 63) - 1)):
        graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), constant))
    nodes = [
        helper.make_node("Reshape", [name, "keep_one"], ["keep_vector"]),
        helper.make_node("Neg", ["keep_vector"], ["keep_from"]),
        helper.make_node("Slice", [product.input[0], "keep_from", "keep_end", "keep_one"], ["kept_rows"]),
    ]
    product.input[0] = "kept_rows"
    place = list(graph.node).index(product)
    for node in reversed(nodes):
        graph.node.insert(place, node)
    graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))


def _caches(proto: Any) -> tuple[dict[tuple[int, str], ValueInfoProto], dict[tuple[int, str], ValueInfoProto]]:
    found: tuple[dict[tuple[int, str], ValueInfoProto], ...] = ({}, {})
    for values, caches in zip((proto.graph.input, proto.graph.output), found, strict=True):
        for value in values:
            if cache := re.fullmatch(r"(?:past_key_values|present)\.(\d+)\.(key|value)", value.name):
                caches[int(cache[1]), cache[2]] = value
    pasts, presents = ({place: caches[place] for place in sorted(caches)} for caches in found)
    return pasts, presents


def _read_instead(proto: Any, name: str, node: Any) -> None:
    """Let everything that reads a value read what a new node makes."""
    for reader in proto.graph.node:
        reader.input[:] = [node.output[0] if read == name else read for read in reader.input]
    proto.graph.node.insert(0, node)


def _renamed(proto: Any, old: str, new: str) -> None:
    for node in proto.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]:
        value.name = new if value.name == old else value.name


def _dims(value: ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def _set_dims(value: ValueInfoProto, dims: list[int | str]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for dim in dims:
        shape.dim.add(**{"dim_value" if isinstance(dim, int) else "dim_param": dim})
