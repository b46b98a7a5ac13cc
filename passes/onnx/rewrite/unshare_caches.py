"""Attentions that read the keys and values of an earlier layer -> attentions that each have a cache of their own.

    Concat(past_key_values.0.key, k) = present.0.key, read by the attentions of layers 0 and 2
    ->  Concat(past_key_values.2.key, k) = present.2.key, read by the attention of layer 2

Gemma 3n's last layers share keys and values so. A copy takes the memory of a cache and changes no number: all that
follows knows layers with one cache each. `ImportFacts.copies` says which caches hold the same.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from passes.onnx.pass_context import Importing, PassLog, emit
from passes.onnx.rewrite.attention_sites import attention_sites

_KINDS = ("key", "value")


def unshare_caches(imp: Importing) -> PassLog:
    """Give every attention after the first one that reads a cache a copy of it."""
    if imp.facts.no_cache:
        return PassLog("unshare_caches", 0)
    matched, read = 0, set[Any]()
    for _, site in attention_sites(imp):
        if isinstance(site, str) or site.past is not None:
            continue
        operands, users = (site.key, site.value), (site.node, site.node)
        if site.scores is not None:
            users = site.scores.producer(), site.output.producer()
        paths = [_path(imp, operand, kind) for operand, kind in zip(operands, _KINDS, strict=True)]
        joined = [path[0] for path in paths if path]
        if len(joined) == len(_KINDS) and read.intersection(joined):
            layer = imp.facts.layers
            for user, path, operand, kind in zip(users, paths, operands, _KINDS, strict=True):
                _copy(imp, user, path, operand, f"{layer}.{kind}")
            imp.facts.copies[layer] = int(joined[0].inputs[0].name.split(".")[1])
            imp.facts.layers += 1
            matched += 1
        read.update(joined)
    return PassLog("unshare_caches", matched)


def _path(imp: Importing, operand: Any, kind: str) -> list[Any]:
    """The Concat of a cache and the nodes from there to an operand, in order; empty where there is none."""
    order = {node: i for i, node in enumerate(imp.graph)}
    todo, behind, joins = [operand], set[Any](), set[Any]()
    while todo:
        node = todo.pop().producer()
        if node is None or node in behind:
            continue
        behind.add(node)
        past = node.inputs[0] if node.op_type == "Concat" and len(node.inputs) == 2 else None
        if past is not None and past.is_graph_input() and str(past.name).endswith(f".{kind}"):
            joins.add(node)
        elif node.op_type not in ("MatMul", "MatMulNBits", "MatMulBnb4", "Gemm", "Softmax"):
            todo += [v for v in node.inputs if v is not None]
    if len(joins) != 1:
        return []
    (join,) = joins
    made, path = set(join.outputs), [join]
    for node in sorted(behind, key=lambda n: order[n]):
        if node is not join and made.intersection(node.inputs):
            made.update(node.outputs)
            path.append(node)
    return path


def _copy(imp: Importing, user: Any, path: list[Any], operand: Any, name: str) -> None:
    """Write the nodes of a path once more, from a cache of that name, for one node that reads the operand."""
    source = path[0].inputs[0]
    past = ir.Value(name=f"past_key_values.{name}", type=source.type, shape=source.shape)
    imp.graph.inputs.append(past)
    made: dict[Any, Any] = {source: past}
    for node in path:
        inputs = [made.get(v, v) for v in node.inputs]
        outputs = [f"{o.name}.of.{name}" if node is not path[0] else f"present.{name}" for o in node.outputs]
        attributes = {a.name: a.value for a in node.attributes.values()}
        again = emit(user, node.op_type, inputs, attributes, domain=node.domain, name=outputs[0], outputs=outputs)
        for old, new in zip(node.outputs, again.outputs, strict=True):
            new.type, new.shape = old.type, old.shape
            made[old] = new
    imp.graph.outputs.append(made[path[0].outputs[0]])
    for i, value in enumerate(user.inputs):
        if value is operand:
            user.replace_input_with(i, made[operand])
