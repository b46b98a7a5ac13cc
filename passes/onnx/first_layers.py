"""A canonical decoder cut short: its first layers, with its final norm and its head behind them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir.passes.common as common

from passes.onnx import Decoder
from passes.onnx.label_parts import computed_nodes, part_of, row_inputs
from targets.errors import UserError


def first_layers(decoder: Decoder, layers: int) -> Decoder:
    """The decoder that leaves after so many layers, at least one and not all; the weights are the same tensors.

    Raises:
        UserError: more than the residual stream crosses that border, or the one before the head.
    """
    whole = decoder.facts.layers
    model = decoder.model.clone()
    graph = model.graph
    units = {node: _unit(node, whole) for node in computed_nodes(graph)}
    early, late = (_stream(units, border, decoder) for border in (layers, whole))
    for node in [node for node, unit in units.items() if unit > whole]:
        for i, value in enumerate(node.inputs):
            if value is late:
                node.replace_input_with(i, early)
    kept = {f".{i}." for i in range(layers)}
    for value in [v for v in graph.outputs if "." in v.name and not any(mark in v.name for mark in kept)]:
        graph.outputs.remove(value)
    common.RemoveUnusedNodesPass()(model)
    caches = [v for v in graph.inputs if v.name.startswith("past_key_values.")]
    for value in [v for v in caches if not any(mark in v.name for mark in kept)]:
        value.replace_all_uses_with(caches[0])  # only its length is read, which all caches share
        graph.inputs.remove(value)
    return replace(decoder, model=model, facts=replace(decoder.facts, layers=layers), stored_bytes=0)


def _unit(node: Any, layers: int) -> int:
    part = part_of(node)
    assert part is not None, f"{node.name} has no label"
    return part.unit(layers)


def _stream(units: dict[Any, int], border: int, decoder: Decoder) -> Any:
    """The one value that crosses from layer ``border`` - 1 to what comes after it."""
    crossing = {
        value
        for node, unit in units.items()
        if unit > border
        for value in row_inputs(node)
        if value.producer() in units and units[value.producer()] <= border
    }
    # a norm that two parts of the next layer share stands before the border
    crossing -= {value for value in crossing if all(source in crossing for source in row_inputs(value.producer()))}
    if len(crossing) != 1:
        raise UserError(
            f"{decoder.model.graph.name or 'the model'}: {len(crossing)} values cross the border after layer {border}, "
            "not the residual stream alone: it cannot be left there"
        )
    (value,) = crossing
    return value
