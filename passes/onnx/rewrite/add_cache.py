"""A plain `input_ids -> logits` graph -> the same graph with a key/value cache that is empty.

    keys [B, kv_heads, S, D]  ->  Concat(past_key_values.0.key, keys, axis 2) = present.0.key

In a causal decoder keys and values of a token depend on no later token, so what the graph computes for a whole text
is what it computes step by step with a cache. That it is causal, and that positions count from the start, is proven
by the passes after this one, on texts from their first token on: with a past the exported arithmetic means nothing.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from passes.onnx.dataflow import activations
from passes.onnx.pass_context import Declined, Importing, PassLog, describe, emit
from passes.onnx.prove.context_limit import limit_context
from passes.onnx.rewrite.attention_sites import attention_sites
from passes.onnx.shapes import Known, Point, known_shapes, points
from passes.onnx.weight_sizes import LINEAR

LONGEST = 1024  # tokens up to which a graph without cache is proven at its full length


def add_cache(imp: Importing) -> PassLog:
    """Append an empty cache to the keys and values of every attention, where the graph has none."""
    if not imp.facts.no_cache:
        return PassLog("add_cache", 0)
    at = points(imp)[0]
    known, active = known_shapes(imp, at), activations(imp)
    imp.facts.head_dim = 1  # until a query tells it
    matched, notes = 0, []
    for node, site in attention_sites(imp):
        try:
            if isinstance(site, str):
                raise Declined(site)
            if imp.context > LONGEST:
                limit_context(imp, LONGEST)
                raise Declined(
                    f"a graph without cache inputs is proven at its full length, which is possible up to {LONGEST} "
                    f"tokens; export text-generation-with-past, or compile with --context {LONGEST} or less"
                )
            if site.query not in known or len(known[site.query].shape) != 4:
                raise Declined(f"the query {site.query.name} is not [batch, heads, new, head_dim]")
            dim = known[site.query].shape[3]
            keys, values = (_appended(v, known, active, at, dim) for v in (site.key, site.value))
            for kind, value in (("key", keys), ("value", values)):
                _append(imp, f"{matched}.{kind}", value, known[value].shape[1], dim)
            imp.facts.head_dim, imp.facts.kv_heads, imp.facts.layers = dim, known[keys].shape[1], matched + 1
            matched += 1
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    return PassLog("add_cache", matched, tuple(notes))


def _appended(operand: Any, known: dict[Any, Known], active: set[Any], at: Point, dim: int) -> Any:
    """The value [batch, kv_heads, new, head_dim] nearest the operand with the fewest heads: what a cache would hold."""
    todo, seen, best = [operand], set(), None
    while todo:
        value = todo.pop(0)
        if value in seen:
            continue
        seen.add(value)
        shape = known[value].shape if value in known else ()
        if len(shape) == 4 and shape[0] == at.batch and shape[2:] == (at.new, dim):
            if best is None or shape[1] < known[best].shape[1]:
                best = value
        node = value.producer()
        if node is not None and node.op_type not in (
            *LINEAR,
            "Gemm",
            "Shape",
            "RMSNormalization",
            "LayerNormalization",
        ):
            todo.extend(v for v in node.inputs if v in active)
    if best is None:
        raise Declined(f"nothing of the form [batch, heads, new, {dim}] leads to {operand.name}")
    return best


def _append(imp: Importing, name: str, value: Any, heads: int, dim: int) -> None:
    past = ir.Value(name=f"past_key_values.{name}", type=ir.TensorType(ir.DataType.FLOAT))
    past.shape = ir.Shape([imp.facts.batch or "batch", heads, "past_sequence_length", dim])
    imp.graph.inputs.append(past)
    users = tuple(value.uses())
    order = {node: i for i, node in enumerate(imp.graph)}
    first = min((node for node, _ in users), key=lambda node: order[node])
    joined = emit(first, "Concat", [past, value], {"axis": 2}, outputs=[f"present.{name}"]).outputs[0]
    joined.type = ir.TensorType(ir.DataType.FLOAT)
    joined.shape = ir.Shape([past.shape[0], heads, "total_sequence_length", dim])
    for node, index in users:
        node.replace_input_with(index, joined)
    imp.graph.outputs.append(joined)
