"""Checks on reading that names can be printed, that each value is made once, and that every value read is made.

Messages quote names, so a name that cannot be printed, or a page long, would spoil the line it stands in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from targets.errors import UserError

_LONGEST_NAME = 512
_MOST_NODES = 200_000  # a decoder of 100 layers has about 20,000 in the most verbose export


def check_printable(path: Path, proto: Any) -> None:
    """Check the names in a ModelProto as they were parsed: those that are not UTF-8 are no strings yet.

    Raises:
        UserError: a name that cannot be printed, or an attribute that is stated twice.
    """
    _check_printable(path, (o.domain for o in proto.opset_import), "an operator set")
    for function in proto.functions:
        parts = [function.domain, function.name, *function.input, *function.output, *function.attribute]
        _check_printable(path, parts, "a function")
    for graph in (proto.graph, *(g for node in nodes_of(proto) for g in _graphs(node))):
        _check_printable(path, [v.name for v in (*graph.input, *graph.output)], "an input or output")
        _check_printable(path, (t.name for t in graph.initializer), "an initialiser")
        _check_printable(path, (e.value for t in graph.initializer for e in t.external_data), "an external file")
        _check_printable(path, (s for v in (*graph.input, *graph.output) for s in _dimensions(v)), "a dimension")
    _check_nodes(path, nodes_of(proto))


def check_names(path: Path, proto: Any) -> None:
    """Check what the names in a ModelProto refer to.

    Raises:
        UserError: a value made twice or by nothing, or functions that call each other.
    """
    _check_expanded(path, proto)
    _check_values(path, proto.graph)


def nodes_of(proto: Any) -> Iterator[Any]:
    """All nodes of a ModelProto, those of functions and subgraphs included."""
    todo = [proto.graph.node, *(f.node for f in proto.functions)]
    while todo:
        for node in todo.pop():
            yield node
            todo += [graph.node for graph in _graphs(node)]


def _graphs(node: Any) -> Iterator[Any]:
    return (graph for a in node.attribute for graph in (*([a.g] if a.HasField("g") else []), *a.graphs))


def _dimensions(value: Any) -> Iterator[str]:
    return (d.dim_param for d in value.type.tensor_type.shape.dim)


def _check_nodes(path: Path, nodes: Any) -> None:
    for node in nodes:
        names = [node.name, node.op_type, node.domain, *node.input, *node.output]
        _check_printable(path, names, "a node")
        _check_printable(path, (s for a in node.attribute for s in (a.name, a.ref_attr_name)), "an attribute")
        if len({a.name for a in node.attribute}) != len(node.attribute):
            raise UserError(f"{path}: {_where(node)} states an attribute twice")
        texts = [s for a in node.attribute for s in (a.s, *a.strings)]
        _check_printable(path, (s.decode("utf-8", "replace") for s in texts), "an attribute's text")


def _check_printable(path: Path, names: Iterable[Any], what: str) -> None:
    for name in names:
        if not isinstance(name, str) or not name.isprintable():  # protobuf gives bytes for what is not UTF-8
            raise UserError(f"{path}: the name of {what} has characters that cannot be printed ({str(name)[:60]!a})")
        if len(name) > _LONGEST_NAME:
            raise UserError(f"{path}: the name of {what} has {len(name)} characters ({name[:60]}...)")


def _check_expanded(path: Path, proto: Any) -> None:
    """Count the nodes after all functions are inlined, without inlining them."""
    functions = {(f.domain, f.name): f for f in proto.functions}
    counts: dict[tuple[str, str], int] = {}
    under_way: set[tuple[str, str]] = set()

    def count(nodes: Any) -> int:
        return sum(expanded((n.domain, n.op_type)) for n in nodes)

    def expanded(name: tuple[str, str]) -> int:
        if name not in functions:
            return 1
        if name in under_way or len(under_way) > 100:
            raise UserError(f"{path}: the function {name[1]} calls itself, or functions are nested too deeply")
        if name not in counts:
            under_way.add(name)
            counts[name] = count(functions[name].node)
            under_way.discard(name)
        return counts[name]

    total = count(proto.graph.node)
    if total > _MOST_NODES:
        raise UserError(f"{path}: the graph has {total} nodes; a decoder has fewer than {_MOST_NODES}")


def _check_values(path: Path, graph: Any) -> None:
    """Each value is made once, and what is read is made."""
    made = {""}
    for kind, names in (("input", [v.name for v in graph.input]), ("initialiser", [t.name for t in graph.initializer])):
        here = [n for n in names if n]
        if len(set(here)) != len(here) or len(here) != len(names):
            twice = "" if len(here) != len(names) else Counter(names).most_common(1)[0][0]
            raise UserError(f"{path}: the {kind} {twice!r} has no name of its own")
        made.update(here)
    for node in graph.node:
        for name in node.output:
            if name and name in made:
                raise UserError(f"{path}: {_where(node)} makes {name!r}, which is made already")
            made.add(name)
    for node in graph.node:
        for name in node.input:
            if name not in made:
                raise UserError(f"{path}: {_where(node)} reads {name!r}, which nothing in the file makes")
        if not any(node.output):
            raise UserError(f"{path}: {_where(node)} has no output")
    outputs = [v.name for v in graph.output]
    for name in outputs:
        if name not in made or not name:
            raise UserError(f"{path}: the output {name!r} is made by nothing in the file")
    if len(set(outputs)) != len(outputs):
        raise UserError(f"{path}: an output is listed twice: {', '.join(outputs)[:200]}")


def _where(node: Any) -> str:
    return f"{node.domain or 'ai.onnx'}.{node.op_type} (node {node.name or node.output[:1]!r})"
