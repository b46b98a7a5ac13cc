"""A merged decoder -> the one of its two graphs that goes on from a cache.

    logits, present = If(use_cache_branch){then: decoder with a past, else: without one}   ->   the first

Optimum merges its two exports of a decoder into one file this way (decoder_model_merged.onnx); hubs are full of them.
A past may have no tokens, so the graph with a cache is all that is needed. This is done on the message, before any of
the checks, which then see one plain graph.
"""

from __future__ import annotations

from typing import Any

SWITCH = "use_cache_branch"


def take_cache_branch(proto: Any) -> bool:
    """Replace the If of a merged decoder by its branch with a cache, in place; False: it is none, or not that simple.

    Only graphs whose every branch output is made by a node of the branch are taken; others are refused later, as
    files with control flow are.
    """
    graph = proto.graph
    readers = [place for place, node in enumerate(graph.node) if SWITCH in node.input]
    node = graph.node[readers[0]] if len(readers) == 1 else None
    if node is None or node.op_type != "If" or node.domain not in ("", "ai.onnx"):
        return False
    body = next((a.g for a in node.attribute if a.name == "then_branch" and a.HasField("g")), None)
    if body is None or body.input or len(body.output) != len(node.output) or SWITCH in {v.name for v in graph.output}:
        return False
    outer = dict(zip((v.name for v in body.output), node.output, strict=True))
    made = {name for inner in body.node for name in inner.output if name}
    if len(outer) != len(node.output) or not outer.keys() <= made or any(_has_graph(inner) for inner in body.node):
        return False
    for inner in body.node:
        inner.input[:] = [outer.get(name, name) for name in inner.input]
        inner.output[:] = [outer.get(name, name) for name in inner.output]
    kept = [*graph.node[: readers[0]], *body.node, *graph.node[readers[0] + 1 :]]
    tensors = [*graph.initializer, *body.initializer]
    read = {name for n in kept for name in n.input} | {v.name for v in graph.output}
    inputs = [v for v in graph.input if v.name != SWITCH]
    _replace(graph.node, kept)
    _replace(graph.initializer, [t for t in tensors if t.name in read])  # the other branch's are not read any more
    _replace(graph.input, inputs)
    del graph.value_info[:]
    return True


def _has_graph(node: Any) -> bool:
    return any(a.HasField("g") or a.graphs for a in node.attribute)


def _replace(field: Any, messages: list[Any]) -> None:
    """Give a repeated field other messages, some of which may be its own."""
    copies = [type(m).FromString(m.SerializeToString()) for m in messages]
    del field[:]
    field.extend(copies)
