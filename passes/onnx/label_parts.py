"""Every node that computes a row gets the layer and the part it belongs to; whoever needs them reads the label.

    embedding | attention of layer 0, feed-forward part of layer 0, attention of layer 1, ... | head

The labels follow from the flow of data alone, so they hold for norms before a block, after it, or on q and k only:
what reaches the logits through attention i alone belongs to attention i; what comes after it belongs to it as far as
the addition that joins the residual stream; what follows is the feed-forward part, and after its own addition the next
layer or the head. A feed-forward part beside its attention is what depends on the layer before and not on attention i.
Masks and positions are not computed from rows and stay without a label.
"""

from __future__ import annotations

from typing import Any

from costmodel.place import ATTENTION, EMBEDDING, FFN, HEAD, Part
from passes.onnx.parts_of_streams import parts_of_streams
from passes.onnx.pass_context import Importing, PassLog
from passes.onnx.prove.weight_expression import is_weight
from passes.onnx.rewrite.local_functions import DOMAIN
from targets.errors import UserError

LAYER, PART = "hetero_sd.layer", "hetero_sd.part"  # keys of a node's metadata, as Netron shows them
# operator of the canonical vocabulary -> the inputs that are rows; the others are weights, sizes, masks and positions
ROW_INPUTS: dict[tuple[str, str], tuple[int, ...]] = {
    ("", "Gather"): (),
    ("com.microsoft", "GatherBlockQuantized"): (),
    ("", "MatMul"): (0,),
    ("com.microsoft", "MatMulNBits"): (0,),
    ("com.microsoft", "MatMulBnb4"): (0,),
    ("", "Add"): (0, 1),
    ("", "Mul"): (0, 1),
    ("", "Sigmoid"): (0,),
    ("", "Gelu"): (0,),
    (DOMAIN, "Gelu"): (0,),
    ("", "Relu"): (0,),
    (DOMAIN, "SquaredRelu"): (0,),
    ("", "Tanh"): (0,),
    ("", "Clip"): (0,),
    (DOMAIN, "XIELU"): (0,),
    ("", "Concat"): (0, 1),
    (DOMAIN, "AltUpPredict"): (0, 1),
    (DOMAIN, "AltUpCorrect"): (0, 1, 2),
    (DOMAIN, "AltUpAdd"): (0, 1),
    (DOMAIN, "MatchMagnitude"): (0, 1),
    (DOMAIN, "GaussianTopK"): (0,),
    ("", "LayerNormalization"): (0,),
    ("", "RMSNormalization"): (0,),
    ("", "Reshape"): (0,),
    ("", "RotaryEmbedding"): (0,),
    ("", "Attention"): (0, 1, 2),
    ("", "Split"): (0,),
}


def label_parts(imp: Importing) -> PassLog:
    """Label the nodes.

    Raises:
        UserError: see `label`.
    """
    return PassLog("label_parts", label(imp.graph))


def label(graph: Any) -> int:
    """Label the nodes of a canonical graph, which is sorted; return how many have a label.

    Raises:
        UserError: an attention has no cache of its own, or the layers are not one after the other.
    """
    nodes = computed_nodes(graph)
    flow = _Flow(nodes)
    parts = flow.parts(nodes)
    for node, part in parts.items():
        node.metadata_props[PART] = part.kind
        if part.kind in (ATTENTION, FFN):
            node.metadata_props[LAYER] = str(part.layer)
    return len(nodes)


def part_of(node: Any) -> Part | None:
    """The part of a labelled node; None of a node that computes no rows."""
    kind = node.metadata_props.get(PART)
    return None if kind is None else Part(kind, int(node.metadata_props.get(LAYER, 0)))


def computed_nodes(graph: Any) -> list[Any]:
    """The nodes that the outputs need as rows, in the order of the graph."""
    needed = {value.producer() for value in graph.outputs}
    found = []
    for node in reversed(graph):
        if node not in needed:
            continue
        needed.update(value.producer() for value in row_inputs(node))
        found.append(node)
    return found[::-1]


def row_inputs(node: Any) -> list[Any]:
    """The inputs of a node that are rows computed by others."""
    chosen = (node.inputs[i] for i in ROW_INPUTS.get((node.domain, node.op_type), ()))
    return [value for value in chosen if value is not None and not is_weight(value)]


class _Flow:
    """For each node, which attentions come before and after it."""

    def __init__(self, nodes: list[Any]) -> None:
        self.index = {node: _layer(node) for node in nodes if node.op_type == "Attention"}
        self.layers = len(self.index)
        if sorted(self.index.values()) != list(range(self.layers)):
            raise UserError(f"the caches of the attentions belong to layers {sorted(self.index.values())}")
        users = self.users = {node: list[Any]() for node in nodes}
        self.before: dict[Any, int] = {}  # the last attention that a node depends on, itself included; -1: none
        self.joined: dict[Any, bool] = {}  # the residual stream was added after that attention
        for node in nodes:
            makers = [value.producer() for value in row_inputs(node) if value.producer() is not None]
            for maker in makers:
                users[maker].append(node)
            last = max((self.before[maker] for maker in makers), default=-1)
            self.before[node] = self.index.get(node, last)
            older = any(self.before[maker] < last for maker in makers)
            inherited = any(self.joined[m] for m in makers if self.before[m] == last)
            self.joined[node] = node not in self.index and last >= 0 and (older or inherited)
            if node in self.index and last != self.index[node] - 1:
                raise UserError(f"attention {self.index[node]} reads what attention {last} computed")
        self.starts = {node for node in nodes if self._joins(node)}
        self.after: dict[Any, int | None] = {}  # the first attention that depends on a node; None: none
        self.only: dict[Any, int | None] = {}  # the attention through which alone it reaches the logits
        for node in reversed(nodes):
            first = [self.index.get(user, self.after[user]) for user in users[node]]
            self.after[node] = min((i for i in first if i is not None), default=None)
            through = {self.index.get(user, self.only[user]) for user in users[node]}
            self.only[node] = through.pop() if len(through) == 1 else None
        feeds = [n for n in nodes if n.op_type == "Add" and len(row_inputs(n)) == 2 and self._follows_last(n)]
        ends = set(nodes[nodes.index(feeds[-1]) + 1 :]) if feeds else set()
        self.head = {node for node in ends if self._follows_last(node)}

    def _joins(self, node: Any) -> bool:
        """Whether a node is where the residual stream joins what its layer's attention computed."""
        makers = [value.producer() for value in row_inputs(node) if value.producer() is not None]
        here = [m for m in makers if self.before[m] == self.before[node]]
        return self.joined[node] and not any(self.joined[m] for m in here)

    def _follows_last(self, node: Any) -> bool:
        return self.before[node] == self.layers - 1 and self.joined[node] and node not in self.starts

    def parts(self, nodes: list[Any]) -> dict[Any, Part]:
        """The part of every node."""
        if any(node.op_type == "AltUpPredict" for node in nodes):
            return parts_of_streams(nodes, self.users, self.part, self.before)
        return {node: self.part(node) for node in nodes}

    def part(self, node: Any) -> Part:
        """The part of a node."""
        if node in self.index:
            return Part(ATTENTION, self.index[node])
        through, before, after = self.only[node], self.before[node], self.after[node]
        if through is not None:
            return Part(ATTENTION, through)
        if before + 1 < self.layers and (after is None or after > before + 1):
            return Part(FFN, before + 1)
        if before < 0:
            return Part(EMBEDDING)
        if node in self.head:
            return Part(HEAD)
        return Part(FFN if self.joined[node] and node not in self.starts else ATTENTION, before)


def _layer(attention: Any) -> int:
    """The layer whose cache an attention reads: the number in ``past_key_values.3.key``."""
    name = attention.inputs[4].name
    parts = name.split(".")
    if len(parts) != 3 or not parts[1].isdecimal():
        raise UserError(f"an attention reads its keys from {name!r}, which is not a cache")
    return int(parts[1])
