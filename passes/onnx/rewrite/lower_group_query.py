"""onnxruntime's GroupQueryAttention -> the canonical attention: rope, CausalMask, Attention.

The operator is its own specification, so nothing has to be found, only read: packed projections are split, its rope
tables are cut to the context. It takes lengths instead of a mask: tokens of row b are the first sum(attention_mask[b])
ones, that is, padding on the right. That the lengths are this sum is proven by running them. Left padding has no
meaning to such an export.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from passes.onnx.dataflow import activations, source_of
from passes.onnx.pass_context import (
    Declined,
    Importing,
    PassLog,
    add_initializer,
    attribute,
    describe,
    emit,
    replace_uses,
)
from passes.onnx.prove.context_limit import limit_context
from passes.onnx.prove.prove_mask import Case, Mask, visible
from passes.onnx.prove.prove_rope import Rope
from passes.onnx.prove.prove_rotation import prove_rotation
from passes.onnx.prove.run_subgraph import Piece
from passes.onnx.rewrite.rotation_before_norm import rotation_before_norm
from passes.onnx.rewrite.write_attention import Proven, as_rows, replace_present, write_attention
from passes.onnx.shapes import Known, Point, known_shapes, points
from targets.errors import UserError

# inputs: query, key, value, past_key, past_value, seqlens_k, total_sequence_length, cos_cache, sin_cache, ...
_KNOWN_INPUTS = 9
_NORMS = 14  # and 15: the weights of the norms of query and key, which onnxruntime's CPU kernel has not either


def lower_group_query(imp: Importing) -> PassLog:
    """Rewrite every GroupQueryAttention; others stay, with the reason in the log.

    Raises:
        UserError: the export's rope tables are shorter than the context.
    """
    nodes = [n for n in imp.graph if n.op_type == "GroupQueryAttention"]
    if not nodes:
        return PassLog("lower_group_query", 0)
    known = known_shapes(imp, points(imp)[0])
    ropes: dict[Any, Rope] = {}
    matched, notes = 0, []
    for node in nodes:
        try:
            _lower(imp, node, known, ropes)
            matched += 1
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    if matched:
        imp.facts.padding = "right"
        notes.append("the export takes lengths, so only padding on the right is understood")
    return PassLog("lower_group_query", matched, tuple(notes))


def _lower(imp: Importing, node: Any, known: dict[Any, Known], ropes: dict[Any, Rope]) -> None:
    extra = [i for i, v in enumerate(node.inputs) if i >= _KNOWN_INPUTS and v is not None]
    if extra:
        norms = "; the norms are in it: build again with --extra_options fuse_qk_norm_gqa=false" * (extra[-1] >= _NORMS)
        raise Declined(f"its inputs {extra} (bias, sink, positions or q/k norm) are not supported{norms}")
    if attribute(node, "sliding_window_cache", 0):
        raise Declined(
            "its cache is a ring that holds the window alone (sliding_window_cache); build the model again with "
            "--extra_options windowed_kv_cache=false"
        )
    heads, kv_heads, head_dim = attribute(node, "num_heads"), attribute(node, "kv_num_heads"), imp.facts.head_dim
    if kv_heads != imp.facts.kv_heads or node.inputs[0] not in known:
        raise Declined(f"it has {kv_heads} key/value heads, the cache {imp.facts.kv_heads}")
    _check_widths(node, known, heads * head_dim, kv_heads * head_dim)
    _prove_lengths(imp, node)
    query, key, value = node.inputs[:3]
    if key is None:
        query, key, value = _split(imp, node, (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim))
    past_key, past_value = node.inputs[3:5]
    if None in (past_key, past_value) or not (past_key.is_graph_input() and past_value.is_graph_input()):
        raise Declined("its cache is no graph input")
    for kind, past, present in zip(("key", "value"), (past_key, past_value), node.outputs[1:3], strict=False):
        if not past.name.endswith(f".{kind}") or present.name != past.name.replace("past_key_values", "present"):
            raise Declined(f"its past and present {kind} are {past.name} and {present.name}")
    scale = attribute(node, "scale", 0.0) or 1.0 / float(np.sqrt(head_dim))
    rope = None
    if attribute(node, "do_rotary", 0):
        rope = _rope(imp, node, known, ropes)
    elif node.inputs[1] is not None:  # the export rotates before the node, or not at all
        active, earlier, at = activations(imp), imp.facts.ropes, points(imp)[0]
        sources = [source_of(v, active, known) for v in (query, key)]
        rope, factor = prove_rotation(imp, sources, [query, key], known, at, heads, earlier)
        if rope is None:
            rotation_before_norm(imp, sources, active, known, at, heads, earlier)
        query, key = (as_rows(node, v, len(known[v].shape)) for v in sources)
        scale *= factor
    window = attribute(node, "local_window_size", -1)
    if window == 0:
        raise Declined("local_window_size=0 is no window; -1 is none")
    window = _prove_window(imp, node, window) if window > 0 else 0
    if not scale > 0:
        raise Declined(f"the scores are multiplied by {scale:g}")
    mask = Mask(window, imp.input("attention_mask") is not None, 1.0, softcap=attribute(node, "softcap", 0.0))
    proven = Proven(query, key, value, past_key.name, past_value.name, heads, float(np.float32(scale)), mask, rope)
    output, *present = write_attention(imp, node, proven)
    output.shape = node.outputs[0].shape
    replace_uses(node.outputs[0], output)
    for past, old, new in zip((past_key, past_value), node.outputs[1:3], present, strict=True):
        replace_present(imp, past.name.replace("past_key_values", "present"), old, new)


def _check_widths(node: Any, known: dict[Any, Known], query: int, key: int) -> None:
    """The projections are as wide as num_heads, kv_num_heads and the cache say, one by one or packed."""
    if (node.inputs[1] is None) != (node.inputs[2] is None):
        raise Declined("it has a key without a value, or a value without a key")
    widths = [query + 2 * key] if node.inputs[1] is None else [query, key, key]
    for value, width in zip(node.inputs, widths, strict=False):
        if value not in known or len(known[value].shape) != 3 or known[value].shape[-1] != width:
            shape = known[value].shape if value in known else "unknown"
            raise Declined(f"{value.name} has the shape {shape}, the numbers of heads and the cache need {width}")


def _split(imp: Importing, node: Any, sizes: tuple[int, int, int]) -> list[Any]:
    packed = node.inputs[0]
    split = add_initializer(imp.graph, f"{packed.name}.split", np.array(sizes, np.int64))
    names = [f"{packed.name}.{part}" for part in ("query", "key", "value")]
    made = emit(node, "Split", [packed, split], {"axis": -1}, num_outputs=3, name=f"{packed.name}.split", outputs=names)
    for output in made.outputs:
        output.type = packed.type
    return list(made.outputs)


def _rope(imp: Importing, node: Any, known: dict[Any, Known], ropes: dict[Any, Rope]) -> Rope:
    if len(node.inputs) < 9 or node.inputs[7] is None or node.inputs[8] is None:
        raise Declined("do_rotary=1 without the tables")
    interleaved = bool(attribute(node, "rotary_interleaved", 0))
    key = (node.inputs[7], node.inputs[8], interleaved)
    if key not in ropes:
        at = points(imp)[0]
        cos, sin = (Piece(imp, [], v).run(at) for v in node.inputs[7:9])
        if cos.ndim != 2 or sin.shape != cos.shape:
            raise UserError(f"the rope tables of the export ({node.inputs[7].name}) are no two matrices of one shape")
        if len(cos) < imp.context:
            limit_context(imp, len(cos))
            raise UserError(
                f"the rope tables of the export ({node.inputs[7].name}) have {len(cos)} positions, the context is "
                f"{imp.context}; compile with --context {len(cos)} or less"
            )
        cos, sin = (np.ascontiguousarray(x[: imp.context], np.float32) for x in (cos, sin))
        ropes[key] = Rope(2 * cos.shape[1], interleaved, cos, sin, "past")
    return ropes[key]


def _prove_window(imp: Importing, node: Any, stated: int) -> int:
    """How many keys a query sees: `stated`, or one more, by running the node on zero queries and marked values."""
    cuts = [v for v in node.inputs[:5] if v is not None]
    piece = Piece(imp, cuts, node.outputs[0])
    kv_heads, head_dim, batch = imp.facts.kv_heads, imp.facts.head_dim, imp.facts.batch or 1
    fitting = {stated, stated + 1}
    for new, past in ((1, min(imp.context - 1, 3 * stated)), (min(imp.context, stated + 3), 0)):
        at = Point(batch, new, past)
        seen = np.zeros((new, past + new), bool)
        for start in range(0, past + new, head_dim):
            marked = np.zeros((batch, past + new, kv_heads, head_dim), np.float32)
            for key in range(start, min(start + head_dim, past + new)):
                marked[:, key, :, key - start] = 1.0
            zeros, heads = np.zeros_like(marked), attribute(node, "num_heads")
            rows = [np.zeros((batch, new, heads * head_dim), np.float32)]
            rows += [x[:, past:].reshape(batch, new, -1) for x in (zeros, marked)]
            rows = rows if node.inputs[1] is not None else [np.concatenate(rows, axis=-1)]
            caches = [np.ascontiguousarray(x[:, :past].transpose(0, 2, 1, 3)) for x in (zeros, marked)]
            out = piece.run(at, dict(zip(cuts, [*rows, *caches], strict=True)))
            seen[:, start : start + head_dim] = out[0, :, : min(head_dim, past + new - start)] > 0
        full = np.ones((1, past + new), np.int64)
        fitting = {w for w in fitting if np.array_equal(seen, visible(at, full, w, False)[0])}
    if not fitting:
        raise Declined(f"local_window_size={stated} hides other keys than a window of that size")
    return min(fitting) if min(fitting) < imp.context else 0


def _prove_lengths(imp: Importing, node: Any) -> None:
    """seqlens_k is the number of real tokens less one, total_sequence_length the length of the mask."""
    if None in node.inputs[5:7]:
        raise Declined("seqlens_k or total_sequence_length is missing")
    batch = imp.facts.batch or 2
    pieces = [Piece(imp, [], v) for v in node.inputs[5:7]]
    for at, pads in ((Point(batch, 6, 0), tuple(range(batch))), (Point(batch, 3, 5), (0,) * batch)):
        case = Case(at, pads, left=False)
        mask = case.attention_mask()
        lengths, total = (p.run(at, attention_mask=mask) for p in pieces)
        if not np.array_equal(lengths.reshape(-1), mask.sum(1) - 1) or total.reshape(-1).tolist() != [mask.shape[1]]:
            raise Declined("seqlens_k is not the number of real tokens less one")
