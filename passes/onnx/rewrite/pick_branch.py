"""An If that chooses between constants by the length of the text -> the constants of the branch that holds.

    cos, sin = If(past + new > 4096){then: long tables, else: short ones}   ->   the short ones, up to 4096 tokens

onnxruntime-genai's builder writes LongRoPE this way. Where the choice changes within the context, every key in the
cache would have to be rotated anew at that length, which no compiled step does: that is refused with the length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, attribute, describe
from passes.onnx.prove.context_limit import limit_context
from passes.onnx.prove.run_subgraph import Piece
from passes.onnx.shapes import Point
from targets.errors import UserError

_BRANCHES = ("then_branch", "else_branch")
_SAMPLES = 64  # lengths at which the choice is looked at, besides the shortest and the longest


def hoist_branches(model: Any, node: Any) -> bool:
    """Make the constants of both branches of an If initialisers of the graph; False: they hold more than constants.

    Afterwards a branch is one Identity an output, so that passes over the graph's initialisers see all of them.
    """
    if node.op_type != "If" or node.domain or set(node.attributes) != set(_BRANCHES):
        return False
    branches = [attribute(node, name) for name in _BRANCHES]
    tensors = [[_constant(v) for v in branch.outputs] for branch in branches]
    sizes = {len(node.outputs), *map(len, tensors)}
    if len(sizes) != 1 or any(b.inputs for b in branches) or any(t is None for part in tensors for t in part):
        return False
    for name, branch, part in zip(_BRANCHES, branches, tensors, strict=True):
        nodes, outputs = [], []
        for old, tensor in zip(branch.outputs, part, strict=True):
            value = ir.Value(name=f"{node.name}.{name}.{old.name}", const_value=tensor)
            value.shape, value.type = ir.Shape(tensor.shape), ir.TensorType(tensor.dtype)
            if value.name in model.graph.initializers:
                return False
            model.graph.register_initializer(value)
            same = ir.node("Identity", [value], name=f"{value.name}.same")
            same.outputs[0].name = f"{value.name}.chosen"
            nodes.append(same)
            outputs.append(same.outputs[0])
        node.attributes[name] = ir.AttrGraph(name, ir.Graph([], outputs, nodes=nodes, name=branch.name))
    return True


def _constant(value: Any) -> Any:
    if value.const_value is not None:
        return value.const_value
    maker = value.producer()
    return attribute(maker, "value") if maker is not None and maker.op_type == "Constant" else None


def pick_branch(imp: Importing) -> PassLog:
    """Replace every If by the branch that its condition chooses at all lengths of the context.

    Raises:
        UserError: it chooses another branch beyond some length within the context.
    """
    notes = []
    ifs = [node for node in imp.graph if node.op_type == "If"]
    for node in ifs:
        piece = Piece(imp, [], node.inputs[0])
        first, last = _chosen(imp, piece, 1), _chosen(imp, piece, imp.context)
        if first != last:
            length = _longest_like(imp, piece, first)
            limit_context(imp, length)
            raise UserError(
                f"{describe(node)}: beyond {length} tokens the export rotates the whole text by other tables "
                f"(LongRoPE), so cached keys are no longer right; compile with --context {length} or less"
            )
        lengths = np.unique(np.geomspace(1, imp.context, _SAMPLES).astype(int))
        if any(_chosen(imp, piece, int(length)) != first for length in lengths):
            raise UserError(
                f"{describe(node)}: its choice changes more than once with the length; export without control flow"
            )
        if any(v.is_graph_output() for v in node.outputs):
            raise UserError(f"{describe(node)} is an output of the graph; export without control flow")
        branch = attribute(node, _BRANCHES[0 if first else 1])
        for old, new in zip(node.outputs, branch.outputs, strict=True):
            old.replace_all_uses_with(new.producer().inputs[0])
        notes.append(f"{describe(node)}: its {'first' if first else 'second'} branch, up to {imp.context} tokens")
    for node in ifs:
        imp.graph.remove(node, safe=True)
    return PassLog("pick_branch", len(ifs), tuple(notes))


def _chosen(imp: Importing, piece: Piece, length: int) -> bool:
    """The condition with that many tokens in all; it must not matter how many of them are new."""
    batch = imp.facts.batch or 1
    past = not imp.facts.no_cache
    cuts = [Point(batch, length, 0), *([Point(batch, 1, length - 1)] if past else [])]
    found = {bool(np.asarray(piece.run(at)).reshape(-1)[0]) for at in cuts}
    if len(found) != 1:
        raise UserError("an If chooses by the number of new tokens, not by the length; export without control flow")
    return found.pop()


def _longest_like(imp: Importing, piece: Piece, first: bool) -> int:
    low, high = 1, imp.context
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _chosen(imp, piece, middle) == first else (low, middle)
    return low
