"""Writes the canonical attention: rope, mask and Attention nodes, the same for every exporter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.pass_context import WRITTEN, Importing, add_initializer, attribute, emit
from passes.onnx.prove.prove_mask import Mask
from passes.onnx.prove.prove_rope import Rope
from passes.onnx.rewrite.local_functions import DOMAIN, alibi_function, causal_mask_function, positions_function


@dataclass(frozen=True)
class Proven:
    """What was proven of one attention; query, key and value are [B, S, heads * head_dim] before the rotation."""

    query: Any
    key: Any
    value: Any
    layer_key: str
    layer_value: str
    heads: int
    scale: float
    mask: Mask
    rope: Rope | None


def write_attention(imp: Importing, before: Any, proven: Proven) -> tuple[Any, Any, Any]:
    """Insert the nodes before `before`; returns (output [B, S, heads * head_dim], present key, present value)."""
    query, key = proven.query, proven.key
    if proven.rope is not None:
        query = rotate(imp, before, query, proven.heads, proven.rope)
        key = rotate(imp, before, key, imp.facts.kv_heads, proven.rope)
    mask = _mask(imp, before, proven.mask)
    attributes = {
        "q_num_heads": proven.heads,
        "kv_num_heads": imp.facts.kv_heads,
        "scale": proven.scale,
        "softcap": proven.mask.softcap,
    }
    past = [imp.input(proven.layer_key), imp.input(proven.layer_value)]
    name = proven.layer_key.replace("past_key_values.", "attention.").removesuffix(".key")
    outputs = [name, f"{name}.present.key", f"{name}.present.value"]
    inputs = [query, key, proven.value, mask, *past]
    node = emit(before, "Attention", inputs, attributes, num_outputs=3, name=name, outputs=outputs)
    node.meta[WRITTEN] = True
    for output in node.outputs:
        output.type = ir.TensorType(ir.DataType.FLOAT)
    return tuple(node.outputs)


def replace_present(imp: Importing, name: str, old: Any, new: Any) -> None:
    """Make `new` the graph output of that name; other users (shape arithmetic) stay on the old value."""
    for i, output in enumerate(imp.graph.outputs):
        if output is old:
            old.name, new.name = f"{name}.exported", name
            new.shape, new.type = old.shape, old.type
            imp.graph.outputs[i] = new


def seen_keys(attention: Any) -> tuple[int, tuple[float, ...]]:
    """The window of an Attention node that was written here, 0: none; and the slopes of its heads, empty: none."""
    maker, slopes = None if attention.inputs[3] is None else attention.inputs[3].producer(), ()
    if maker is not None and maker.op_type == "Alibi":
        maker, slopes = maker.inputs[0].producer(), tuple(attribute(maker, "slopes"))
    return 0 if maker is None else int(attribute(maker, "window", 0)), slopes


def as_rows(before: Any, value: Any, rank: int) -> Any:
    """[B, S, H, D] -> [B, S, H * D]; a value of rank 3 is that already."""
    if rank == 3:
        return value
    graph, name = before.graph, f"{value.name}.rows"
    if made := next((user.outputs[0] for user, _ in value.uses() if user.outputs[0].name == name), None):
        return made  # of keys that several layers read
    shape = add_initializer(graph, f"{name}.shape", np.array([0, 0, -1], np.int64))
    return emit(before, "Reshape", [value, shape], {"allowzero": 0}, outputs=[name]).outputs[0]


def _tables(imp: Importing, before: Any, rope: Rope) -> tuple[Any, Any, Any]:
    """(cos, sin, positions), shared by all layers with the same tables."""
    shared = imp.facts.tables
    for known, values in shared:
        if known is rope:
            return values
    suffix = f".{len(shared)}" if shared else ""
    values = (
        add_initializer(imp.graph, f"rope{suffix}.cos", rope.cos),
        add_initializer(imp.graph, f"rope{suffix}.sin", rope.sin),
        positions_value(imp, before, rope.positions),
    )
    shared.append((rope, values))
    return values


def positions_value(imp: Importing, before: Any, kind: str) -> Any:
    """Where positions come from, "input", "past" or "mask", as a value [B, S]; made before a node if need be."""
    if kind == "input":
        return imp.input("position_ids")
    made = imp.facts.positions
    if kind not in made:
        mask = imp.input("attention_mask") if kind == "mask" else None
        name = f"positions.{kind}" if made else "positions"
        made[kind] = _call(imp, before, positions_function(kind == "mask"), mask, name)
        made[kind].type = ir.TensorType(ir.DataType.INT64)
    return made[kind]


def _call(imp: Importing, before: Any, function: Any, mask: Any, name: str, **attributes: Any) -> Any:
    """The result of a model-local function, which is added to the model unless that overload is there."""
    if function.identifier() not in imp.model.functions:
        imp.model.functions[function.identifier()] = function
        imp.graph.opset_imports[DOMAIN] = 1
    inputs = [mask, imp.input("input_ids"), imp.input("past_key_values.0.key")]
    own = {"domain": DOMAIN, "overload": function.overload, "name": name, "outputs": [name]}
    return emit(before, function.name, inputs, attributes, **own).outputs[0]


def rotate(imp: Importing, before: Any, x: Any, heads: int, rope: Rope) -> Any:
    """X [B, S, heads * head_dim] rotated by position, a value made before a node."""
    cos, sin, positions = _tables(imp, before, rope)
    attributes = {
        "num_heads": heads,
        "interleaved": int(rope.interleaved),
        "rotary_embedding_dim": rope.rotary_dim,
    }
    name = f"{x.name}.rotated"
    for user, _ in x.uses():  # keys that several layers read
        if user.op_type == "RotaryEmbedding" and user.inputs[1] is cos and user.outputs[0].name == name:
            return user.outputs[0]
    node = emit(before, "RotaryEmbedding", [x, cos, sin, positions], attributes, name=name, outputs=[name])
    node.meta[WRITTEN] = True
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return node.outputs[0]


def _mask(imp: Importing, before: Any, mask: Mask) -> Any:
    """The CausalMask value with that window, and what is added to it, shared by all layers that have both."""
    made = imp.facts.masks
    if (mask.window, mask.padding, mask.slopes) in made:
        return made[mask.window, mask.padding, mask.slopes]
    if mask.slopes:
        causal = _mask(imp, before, replace(mask, slopes=()))
        return made.setdefault((mask.window, mask.padding, mask.slopes), _alibi(imp, before, causal, mask.slopes))
    name = f"mask.{mask.window}" if mask.window else "mask"
    if (mask.window, not mask.padding, ()) in made:
        name += ".padded" if mask.padding else ".unpadded"
    hidden = imp.input("attention_mask") if mask.padding else None
    value = _call(imp, before, causal_mask_function(mask.padding), hidden, name, window=mask.window)
    value.type = ir.TensorType(ir.DataType.FLOAT)
    made[mask.window, mask.padding, ()] = value
    return value


def _alibi(imp: Importing, before: Any, mask: Any, slopes: tuple[float, ...]) -> Any:
    function, name = alibi_function(), f"{mask.name}.alibi"
    imp.model.functions.setdefault(function.identifier(), function)
    made = emit(before, function.name, [mask], {"slopes": list(slopes)}, domain=DOMAIN, name=name, outputs=[name])
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return made.outputs[0]
