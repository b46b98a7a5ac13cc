"""Each attention of the export -> rope, CausalMask and one opset-23 Attention on rows [B, S, heads * head_dim].

Every piece around the two matrix multiplications is run on numbers and compared with what it must be: projections
rotated by position and laid out by head, the cache repeated for the query heads, scores scaled and
masked, the softmax passed on as it is, heads joined to rows. The arithmetic in between may be written in any way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.onnx.dataflow import activations, source_of, targets_of
from passes.onnx.pass_context import Declined, Importing, PassLog, attribute, describe, replace_uses
from passes.onnx.prove.prove_mask import prove_mask
from passes.onnx.prove.prove_rope import Rope, Rotation, check_unrotated
from passes.onnx.prove.prove_rotation import layout, layouts, prove_rotation
from passes.onnx.prove.run_subgraph import Piece
from passes.onnx.rewrite.attention_sites import Site, attention_sites
from passes.onnx.rewrite.rotation_before_norm import rotation_before_norm
from passes.onnx.rewrite.write_attention import Proven, as_rows, replace_present, write_attention
from passes.onnx.shapes import Known, Point, known_shapes, points

Shapes = dict[Any, Known]


@dataclass(frozen=True)
class _Cache:
    """One cache at a site: the graph input, what is appended, the joined value, the operand made of it."""

    past: Any
    appended: Any
    present: Any
    operand: Any


def fuse_attention(imp: Importing) -> PassLog:
    """Rewrite every attention whose pieces are all proven; others stay, with the reason in the log."""
    at = points(imp)[0]
    known, active = known_shapes(imp, at), activations(imp)
    ropes: list[Rope | None] = []
    matched, notes = 0, []
    for node, site in attention_sites(imp):
        try:
            if isinstance(site, str):
                raise Declined(site)
            _fuse(imp, site, known, active, at, ropes)
            matched += 1
        except Declined as reason:
            notes.append(f"{describe(node)}: {reason}")
    notes += sorted(imp.facts.mask_notes)
    return PassLog("fuse_attention", matched, tuple(notes))


def _fuse(imp: Importing, site: Site, known: Shapes, active: set[Any], at: Point, ropes: list[Rope | None]) -> None:
    for value in (site.query, site.key, site.value, site.output):
        if value not in known:
            raise Declined(f"the shape of {value.name} is unknown")
    head_dim, kv_heads = imp.facts.head_dim, imp.facts.kv_heads
    if not kv_heads:
        raise Declined("there is no cache: none in the file, and none was added")
    heads = known[site.query].size // (at.batch * at.new * head_dim)
    if heads % kv_heads or heads * head_dim * at.batch * at.new != known[site.query].size:
        raise Declined(f"the query {known[site.query].shape} is not made of heads of {head_dim}")
    _check_heads(site, known, head_dim)
    keys = _cache(imp, site.key, site, 0, "key")
    values = _cache(imp, site.value, site, 1, "value")
    key_factor = _prove_operand(imp, keys, known, heads, at, transposed=site.scores is not None)
    value_factor = _prove_operand(imp, values, known, heads, at, transposed=False)
    sources = [source_of(v, active, known) for v in (site.query, keys.appended, values.appended)]
    rope, query_factor = prove_rotation(imp, sources, [site.query, keys.appended], known, at, heads, ropes)
    moved = Rotation(imp, sources[2], values.appended, kv_heads, layouts(imp, sources[2], values.appended, known, at))
    if check_unrotated(moved) != 1.0 or value_factor != 1.0:
        raise Declined("the values are scaled")
    if site.scores is not None and site.scores in known:  # [B, heads, S, total] or [B * heads, S, total]
        site.scores.shape = ir.Shape([None] * len(known[site.scores].shape))
    mask = prove_mask(imp, site, heads)
    _prove_weights(imp, site, known, at, heads)
    scale = site.scale * query_factor * key_factor * mask.scale
    if not scale > 0:
        raise Declined(f"the scores are multiplied by {scale:g}")
    rows = _rows_after(imp, site.output, known, at, heads)
    if rope is None:
        rotation_before_norm(imp, sources[:2], active, known, at, heads, ropes)
    imp.facts.mask_notes.update(mask.notes)
    imp.facts.single_token_decode = not mask.many_tokens_after_past
    before = rows.producer()
    query, key, value = (as_rows(before, v, len(known[v].shape)) for v in sources)
    proven = Proven(query, key, value, keys.past.name, values.past.name, heads, float(np.float32(scale)), mask, rope)
    output, present_key, present_value = write_attention(imp, before, proven)
    output.shape = rows.shape
    replace_uses(rows, output)
    for cache, new in ((keys, present_key), (values, present_value)):
        replace_present(imp, cache.past.name.replace("past_key_values", "present"), cache.present, new)


def _cache(imp: Importing, operand: Any, site: Site, index: int, kind: str) -> _Cache:
    """The cache behind an operand: the operator's own, or a Concat with a graph input."""
    if site.past is not None:
        past, appended = site.past[index], operand
        present = site.present[index] if site.present is not None else None
        operand = None
    else:
        todo, seen, found = [operand], set(), None
        while todo and found is None:
            value = todo.pop(0)
            node = value.producer()
            if node is None or node in seen or node.op_type == "Shape":
                continue
            seen.add(node)
            if node.op_type == "Concat" and len(node.inputs) == 2 and node.inputs[0].is_graph_input():
                found = node
            elif node.op_type in ("MatMul", "MatMulNBits", "MatMulBnb4", "Gemm"):
                continue
            else:
                todo.extend(v for v in node.inputs if v is not None)
        if found is None:
            raise Declined(f"no Concat with a past {kind} is found before the matrix multiplication")
        past, appended, present = found.inputs[0], found.inputs[1], found.outputs[0]
    if not past.is_graph_input() or not past.name.endswith(f".{kind}"):
        raise Declined(f"{past.name} is used where a past {kind} should be")
    if present is None or present.name != past.name.replace("past_key_values", "present"):
        raise Declined(f"{past.name} with the new tokens appended is not the output present{past.name[15:]}")
    return _Cache(past, appended, present, operand)


def _prove_operand(imp: Importing, cache: _Cache, known: Shapes, heads: int, at: Point, transposed: bool) -> float:
    """The factor with which the joined cache, repeated for the query heads, becomes the operand."""
    if cache.operand is None:
        return 1.0
    kv_heads, head_dim = imp.facts.kv_heads, imp.facts.head_dim
    piece = Piece(imp, [cache.past, cache.appended], cache.operand)
    rng = np.random.default_rng(2)
    past = rng.standard_normal((at.batch, kv_heads, at.past, head_dim)).astype(np.float32)
    new = rng.standard_normal((at.batch, kv_heads, at.new, head_dim)).astype(np.float32)
    actual = piece.run(at, {cache.past: past, cache.appended: new})
    joined = np.concatenate([past, new], axis=2)
    for candidate in (np.repeat(joined, heads // kv_heads, axis=1), joined):
        rows = candidate.transpose(0, 2, 1, 3).reshape(at.batch, at.past + at.new, -1)
        flat = candidate.reshape(-1, *candidate.shape[2:])
        for expected in (candidate, flat) if not transposed else (candidate.swapaxes(-1, -2), flat.swapaxes(-1, -2)):
            if (factor := _ratio(actual, expected)) is not None:
                return factor
        if not transposed and (factor := _ratio(actual, rows)) is not None:
            return factor
    raise Declined(f"{cache.operand.name} is not {cache.past.name} and the new tokens, repeated for {heads} heads")


def _ratio(actual: np.ndarray, expected: np.ndarray) -> float | None:
    """The factor between two arrays, or None if there is none."""
    if actual.shape != expected.shape:
        return None
    factor = float((actual * expected).sum(dtype=np.float64) / (expected * expected).sum(dtype=np.float64))
    if not np.abs(actual - factor * expected).max() <= 1e-6 * max(float(np.abs(actual).max()), 1e-30):
        return None
    return 1.0 if abs(factor - 1.0) < 1e-7 else factor


def _check_heads(site: Site, known: Shapes, head_dim: int) -> None:
    """The operator's own numbers of heads are those of the cache; the decomposed form has them in its shapes."""
    names = {"MultiHeadAttention": ("num_heads",) * 3, "Attention": ("q_num_heads", "kv_num_heads", "kv_num_heads")}
    for value, name in zip((site.query, site.key, site.value), names.get(site.node.op_type, ()), strict=False):
        shape, stated = known[value].shape, attribute(site.node, name)
        heads = shape[1] if len(shape) == 4 else shape[-1] / head_dim
        if len(shape) not in (3, 4) or (stated is None and len(shape) == 3) or stated not in (None, heads):
            raise Declined(f"{value.name} {shape} is not made of {name}={stated} heads of {head_dim}")


def _prove_weights(imp: Importing, site: Site, known: Shapes, at: Point, heads: int) -> None:
    """What multiplies the values is the softmax of the masked scores over the keys; a guard against NaN may follow."""
    if site.weights is None:
        return
    shape = (at.batch, heads, at.new, at.past + at.new)
    flat = (at.batch * heads, *shape[2:])
    masked = known[site.masked].shape if site.masked in known else shape
    if masked not in (shape, flat):
        raise Declined(f"the softmax works on {masked}, not on {shape}")
    scores = 3 * np.random.default_rng(3).standard_normal(masked).astype(np.float32)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    actual = Piece(imp, [site.masked], site.weights[1]).run(at, {site.masked: scores})
    if actual.shape not in (shape, flat) or not np.abs(actual - weights.reshape(actual.shape)).max() < 1e-6:
        raise Declined("what multiplies the values is not the softmax of the scores over the keys")
    softmax, operand = site.weights
    if softmax is not operand:  # nothing but the softmax's result decides what is passed on
        weights = weights.reshape(masked)
        actual = Piece(imp, [softmax], operand).run(at, {softmax: weights})
        if actual.size != weights.size or not np.array_equal(actual.reshape(masked), weights):
            raise Declined("the softmax result is changed before the multiplication with the values")


def _rows_after(imp: Importing, output: Any, known: Shapes, at: Point, heads: int) -> Any:
    """The value [B, S, heads * head_dim] as which what multiplies the values is laid out."""
    head_dim = imp.facts.head_dim
    rows = (at.batch, at.new, heads * head_dim)
    expected = np.random.default_rng(4).standard_normal((at.batch, heads, at.new, head_dim)).astype(np.float32)
    as_made = {"bsd": lambda x: x.transpose(0, 2, 1, 3).reshape(rows), "bhsd": lambda x: x}
    lies = layout(imp, output, known, at, ("bsd", "bhsd", "nsd"))
    made = as_made.get(lies, lambda x: x.reshape(-1, at.new, head_dim))(expected)
    for target in reversed(targets_of(output)):
        if target not in known or known[target].shape != rows:
            continue
        actual = Piece(imp, [output], target).run(at, {output: np.ascontiguousarray(made)})
        if np.array_equal(actual, expected.transpose(0, 2, 1, 3).reshape(rows)):
            return target
    raise Declined(f"no value [batch, new, {heads * head_dim}] with the heads side by side follows {output.name}")
