"""The nodes of a graph in one order that depends on its data flow alone, not on the order they have in the file.

    depth first from the outputs (logits, then caches), each node after its inputs from first to last

Any topological order is right to ONNX, and tools that rewrite exports (quantisers, onnxruntime's optimiser) leave
another one than the exporter did. After this pass no later one can see the difference. Nodes that no output needs
keep their order and come last.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


def sort_nodes(graph: Any) -> None:
    """Bring the nodes of a graph into that order.

    Raises:
        ValueError: the graph has a cycle.
    """
    done: set[Any] = set()
    order: list[Any] = []
    for start in (*(v.producer() for v in graph.outputs), *graph):
        _visit(start, graph, done, order)
    graph.extend(order)


def _visit(start: Any, graph: Any, done: set[Any], order: list[Any]) -> None:
    """Append `start` and what it needs, without recursion: graphs are deep."""
    if start is None or start in done:
        return
    path: dict[Any, Any] = {start: iter(_needed(start, graph))}
    while path:
        node, rest = next(reversed(path.items()))
        for maker in rest:
            if maker in path:
                raise ValueError("Graph contains a cycle, topological sort is not possible.")
            if maker not in done:
                path[maker] = iter(_needed(maker, graph))
                break
        else:
            del path[node]
            done.add(node)
            order.append(node)


def _needed(node: Any, graph: Any) -> list[Any]:
    """The nodes of the graph that a node, or a subgraph of it, reads."""
    values = list(node.inputs)
    for attr in node.attributes.values():
        graphs = [attr.value] if attr.type == ir.AttributeType.GRAPH else ()
        for inner in attr.value if attr.type == ir.AttributeType.GRAPHS else graphs:
            values += [v for n in inner.all_nodes() for v in n.inputs]
            values += list(inner.outputs)
    makers = (v.producer() for v in values if v is not None)
    return [maker for maker in makers if maker is not None and maker.graph is graph]
