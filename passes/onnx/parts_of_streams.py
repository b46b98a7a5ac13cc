"""The parts of a decoder with AltUp's streams, where every layer's result is added to all streams at its end.

    embedding      the streams, and what all layers read of a token's own rows
    attention of i AltUpPredict with what makes its factors, the attention, what stands beside it, their addition
    ffn of i       from the norm after that addition to AltUpAdd
    head           what follows the last AltUpAdd

A Split that takes columns for one part belongs to that part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from costmodel.place import ATTENTION, EMBEDDING, FFN, HEAD, Part


def parts_of_streams(
    nodes: list[Any], users: dict[Any, list[Any]], usual: Callable[[Any], Part], before: dict[Any, int]
) -> dict[Any, Part]:
    """The parts.

    Args:
        nodes: in the order of the graph.
        users: of each of them.
        usual: the part of a node in a decoder with one stream.
        before: the last attention that a node depends on; -1: none.
    """
    layers = sum(node.op_type == "AltUpAdd" for node in nodes)
    done: dict[Any, int] = {}  # how many layers' ends a node depends on
    in_layer: dict[Any, bool] = {}  # it depends on an AltUpPredict
    in_ffn: dict[Any, bool] = {}  # it depends on the norm after what its layer's attention was added to
    makers: dict[Any, list[Any]] = {node: [] for node in nodes}
    for node, read in users.items():
        for user in read:
            makers[user].append(node)
    for node in nodes:
        done[node] = max((done[m] + (m.op_type == "AltUpAdd") for m in makers[node]), default=0)
        in_layer[node] = node.op_type == "AltUpPredict" or any(in_layer[m] for m in makers[node])
        norm = node.op_type == "RMSNormalization" and before[node] >= done[node] and usual(node).kind in (FFN, HEAD)
        in_ffn[node] = norm or any(in_ffn[m] for m in makers[node] if m.op_type != "AltUpAdd")
    parts: dict[Any, Part] = {}
    for node in reversed(nodes):
        layer, found = done[node], {parts[user] for user in users[node]}
        if layer == layers:
            parts[node] = Part(HEAD)
        elif len(found) == 1 and node.op_type == "Split":
            parts[node] = found.pop()
        elif in_ffn[node]:
            parts[node] = Part(FFN, layer)
        elif layer or in_layer[node]:
            parts[node] = Part(ATTENTION, layer)
        elif found == {Part(ATTENTION, layer)} and node.op_type != "Concat":
            parts[node] = Part(ATTENTION, layer)
        else:
            parts[node] = Part(EMBEDDING)
    return parts
