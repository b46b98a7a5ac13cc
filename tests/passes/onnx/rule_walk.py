"""Exports with one thing changed in every node of a kind: an attribute, the order of inputs, a constant's form.

Nodes are of a kind if they have the operator, the attributes and the neighbours in common: the same place in each
layer. All of them are changed at once, so that the layers go on to agree.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from passes.onnx.operator_rules import RULES

Change = Callable[[Any], None]
OPSETS = (13, 17, 18, 21, 23, 24, 25)
_TEXTS = {
    "approximate": ("none", "tanh"),
    "reduction": ("none", "add", "mul", "max"),
    "round_mode": ("up", "down", "nearest"),
    "k_quant_type": ("NONE", "PER_TENSOR"),
    "v_quant_type": ("NONE", "PER_CHANNEL"),
}


@dataclass(frozen=True)
class Stated:
    """What onnxruntime's schema says: types and defaults (as AttributeProto) of attributes, options of inputs."""

    types: dict[str, str]
    defaults: dict[str, bytes]
    required: set[str]
    inputs: list[str]


@functools.cache
def onnxruntime_schemas() -> dict[tuple[str, str], Stated]:
    """By (domain, operator); copied out at once, because the objects do not outlive the call for long."""
    found = {}
    for schema in get_all_operator_schema():
        if (schema.domain, schema.name) in RULES:
            found[schema.domain, schema.name] = Stated(
                {name: str(a.type).split(".")[-1] for name, a in schema.attributes.items()},
                {name: bytes(a._default_value) for name, a in schema.attributes.items()},
                {name for name, a in schema.attributes.items() if a.required},
                [str(x.option).split(".")[-1] for x in schema.inputs],
            )
    return found


def schema_of(domain: str, op_type: str, opset: int) -> Stated | None:
    """The schema of an operator in that opset, by ONNX or else by onnxruntime; None: there is none."""
    if domain or not onnx.defs.has(op_type):
        return onnxruntime_schemas().get((domain, op_type))
    try:
        schema = onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return None
    return Stated(
        {name: str(a.type).split(".")[-1] for name, a in schema.attributes.items()},
        {name: a.default_value.SerializeToString() for name, a in schema.attributes.items()},
        {name for name, a in schema.attributes.items() if a.required},
        [str(x.option).split(".")[-1] for x in schema.inputs],
    )


@dataclass(frozen=True)
class Mutant:
    """One change to a file: which kind of node, what is changed, and the function that does it to a ModelProto."""

    kind: str
    what: str
    change: Change

    def __str__(self) -> str:
        """The name of the change, for messages."""
        return f"{self.kind.split('|')[0]}: {self.what}"


def kinds(proto: Any) -> dict[str, list[int]]:
    """Places in graph.node by kind."""
    made = {name: node for node in proto.graph.node for name in node.output}
    users: dict[str, set[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    constants = {t.name: list(t.dims) for t in proto.graph.initializer}
    found: dict[str, list[int]] = {}
    for place, node in enumerate(proto.graph.node):
        if (node.domain, node.op_type) not in RULES:
            continue
        inputs = [
            ""
            if not n
            else made[n].op_type
            if n in made
            else f"constant{len(constants[n])}"
            if n in constants
            else "input"
            for n in node.input
        ]
        after = sorted({user for n in node.output for user in users.get(n, {"output"})})
        attributes = sorted(str(onnx.helper.get_attribute_value(a))[:40] for a in node.attribute if not a.HasField("g"))
        found.setdefault(f"{node.domain}.{node.op_type}|{attributes}|{inputs}|{after}", []).append(place)
    return found


def mutants(proto: Any) -> Iterator[Mutant]:
    """Every change to every kind of node, then the opsets."""
    opset = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    constants = {t.name: t for t in proto.graph.initializer}
    for kind, places in kinds(proto).items():
        node = proto.graph.node[places[0]]
        schema = schema_of(node.domain, node.op_type, opset)
        for name in RULES[node.domain, node.op_type].attributes:
            if schema is not None and name in schema.types:
                for value in _values(node, name, schema):
                    yield Mutant(kind, f"{name}={value}", _set(places, name, value))
        given = [i for i, name in enumerate(node.input) if name]
        for a, b in itertools.pairwise(given):
            yield Mutant(kind, f"inputs {a} and {b} swapped", _swap(places, a, b))
        if len(given) > 1:
            yield Mutant(kind, f"without input {given[-1]}", _drop(places, given[-1]))
        for i in given:
            tensor = constants.get(node.input[i])
            if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) <= 2:
                size = int(np.prod(tensor.dims))
                for dims in ([], [1], [1, 1, 1, 1]) if size == 1 else ([1, size], [size, 1], [1, 1, 1, size]):
                    if list(tensor.dims) != dims and len(tensor.dims) < 2:
                        yield Mutant(kind, f"input {i} of the form {dims}", _reform(places, i, dims))
    for version in OPSETS:
        if version != opset:
            yield Mutant("opset", str(version), _opset(version))


def _values(node: Any, name: str, schema: Stated) -> list[Any]:
    old = next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), None)
    kind = schema.types[name]
    values: list[Any] = []
    if kind == "INT":
        values = [0, 1, -1, 2, 3, *([] if old is None else [old + 1, old - 1, 2 * old, old // 2])]
        values += [10, 11] if name in ("to", "stash_type", "softmax_precision", "output_dtype") else []
    elif kind == "FLOAT":
        values = [0.0, 0.5, 1.0, -1.0, *([] if old is None else [1.5 * old])]
    elif kind == "STRING":
        values = list(_TEXTS.get(name, ()))
        old = old.decode() if old is not None else None
    elif kind == "INTS" and old:
        values = [list(old)[::-1], sorted(old), [*old[:-2], old[-1], old[-2]] if len(old) > 1 else [old[0] - 1], [0]]
    elif kind == "TENSOR" and old is not None:
        x = onnx.numpy_helper.to_array(old)
        values = [onnx.numpy_helper.from_array(x + np.ones_like(x), old.name)] if x.dtype != bool else []
        old = None
    unique = [v for i, v in enumerate(values) if v not in values[:i]]
    return [v for v in unique if v != (list(old) if isinstance(old, list) else old)]


def _set(places: list[int], name: str, value: Any) -> Change:
    def change(proto: Any) -> None:
        for place in places:
            node = proto.graph.node[place]
            kept = [a for a in node.attribute if a.name != name]
            del node.attribute[:]
            node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return change


def _swap(places: list[int], a: int, b: int) -> Change:
    def change(proto: Any) -> None:
        for place in places:
            node = proto.graph.node[place]
            if max(a, b) < len(node.input):
                node.input[a], node.input[b] = node.input[b], node.input[a]

    return change


def _drop(places: list[int], i: int) -> Change:
    def change(proto: Any) -> None:
        for place in places:
            node = proto.graph.node[place]
            if i < len(node.input):
                del node.input[i:]

    return change


def _reform(places: list[int], i: int, dims: list[int]) -> Change:
    def change(proto: Any) -> None:
        tensors = {t.name: t for t in proto.graph.initializer}
        for place in places:
            node = proto.graph.node[place]
            tensor = tensors[node.input[i]]
            if f"{tensor.name}.reformed" not in tensors:
                copy = proto.graph.initializer.add()
                copy.CopyFrom(tensor)
                copy.name = f"{tensor.name}.reformed"
                copy.dims[:] = dims
                tensors[copy.name] = copy
            node.input[i] = f"{tensor.name}.reformed"

    return change


def _opset(version: int) -> Change:
    def change(proto: Any) -> None:
        for opset in (*proto.opset_import, *(o for f in proto.functions for o in f.opset_import)):
            if opset.domain in ("", "ai.onnx"):
                opset.version = version

    return change


def write(source: Path, folder: Path, change: Change) -> Path:
    """Write the changed file into a folder, with the weights beside it."""
    proto = onnx.load(source, load_external_data=False)
    change(proto)
    for beside in source.parent.glob(f"{source.name}.data"):
        link = folder / beside.name
        if not link.exists():
            link.write_bytes(beside.read_bytes())
    path = folder / source.name
    path.write_bytes(proto.SerializeToString())
    return path
