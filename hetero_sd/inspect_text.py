"""An inspection as text for people and as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from costmodel.decoder import DecoderSpec
from costmodel.format import Format
from costmodel.operators import NONLINEARITIES, NORMS, Operator
from costmodel.place import ATTENTION, FFN, HEAD, Part
from hetero_sd.inspect import Inspection
from passes.onnx import DecoderFacts
from passes.onnx.pass_context import PassLog

_MOST_NOTES = 8  # notes of a pass that are shown
_POSITIONS = {
    "input": "the input position_ids",
    "past": "counted on from the cache",
    "mask": "the tokens counted in attention_mask",
}
# what a pass looks for, and the operators that show where it found it
_PASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "unstack_caches": ("caches in one tensor taken apart", ()),
    "plain_inputs": ("inputs and outputs known by what reads and makes them, and casts of inputs left out", ("Cast",)),
    "cache_axes": ("caches with their axes in another order turned", ("Transpose",)),
    "normalise_io_names": ("inputs and outputs renamed", ()),
    "pick_branch": ("branches decided for this context", ("If",)),
    "unfuse_linear": (
        "matrix multiplications that onnxruntime's optimiser joined with others written out",
        ("FusedGemm", "FusedMatMul"),
    ),
    "upcast_to_float32": ("16-bit values computed in float32, weights kept as stored", ()),
    "plain_token_ids": ("tables read by what is computed from tokens, read by tokens", ("Gather",)),
    "drop_fake_quantisation": ("activations rounded with a fixed scale left as they are", ("QuantizeLinear",)),
    "float_activations": (
        "8-bit rounding of activations taken out; weights kept as stored, int8 activations allowed",
        ("MatMulInteger", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    ),
    "find_head_dim": ("cache inputs given their head dimension", ()),
    "last_axis": ("axes of softmaxes and norms written as the last one", ()),
    "fold_constants": ("constants computed, idle nodes removed", ()),
    "lower_dequantize": ("dequantised weights made block-quantised matrix multiplications", ("DequantizeLinear",)),
    "float_positions": ("position tables in blocks made tables of floats", ("GatherBlockQuantized",)),
    "blocks_of_columns": ("blocks of 4-bit codes cut so that each lies within a column", ("MatMulBnb4",)),
    "unfuse_onnxruntime": (
        "nodes of onnxruntime's optimiser written out",
        ("FusedMatMul", "SkipLayerNormalization"),
    ),
    "check_logits": ("logits of every token", ()),
    "resolve_shapes": ("shapes of computed values taken from the inputs", ("Shape",)),
    "fuse_rms_norm": (
        "norms recognised",
        ("ReduceMean", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
    ),
    "fuse_layer_norm": ("layer norms put in one form", ("ReduceMean", "SimplifiedLayerNormalization")),
    "join_head_norms": ("layer norms of single heads joined", ("Concat",)),
    "norm_by_head": ("norms of single heads", ("RMSNormalization", "LayerNormalization")),
    "split_packed": ("packed projections split", ("Slice", "Split")),
    "canonical_matmuls": ("matrix multiplications and gates put in one form", ("Gemm", "Div", "Swish", "QuickGelu")),
    "unflatten_rows": ("flattened rows brought back", ("Reshape",)),
    "ungroup_packed": ("packed projections put in the order of heads", ()),
    "tie_equal_head": ("heads that are the embedding once more, stored once", ()),
    "fuse_activations": (
        "GELU, soft caps and squared ReLU recognised",
        ("Relu", "Tanh", "Erf", "Gelu", "FastGelu", "BiasGelu"),
    ),
    "fuse_xielu": ("xIELU recognised", ("Exp",)),
    "rows_by_layer": ("rows with numbers for each layer", ("Gather",)),
    "fuse_magnitudes": ("rows moved by their own statistics recognised", ("Div", "Relu")),
    "fuse_altup": ("steps of AltUp's streams recognised", ("Add", "ScatterND", "Gather", "ReduceMean")),
    "add_cache": ("caches added", ()),
    "unshare_caches": ("attentions given a copy of the cache they read", ()),
    "learned_positions": ("tables of learned positions", ("Gather",)),
    "fuse_attention": ("attentions recognised", ("Softmax", "Attention", "MultiHeadAttention")),
    "lower_group_query": ("GroupQueryAttention read", ("GroupQueryAttention",)),
    "exact_quantised": ("activations of quantised matrix multiplications left exact (accuracy_level 0)", ()),
    "check_vocabulary": ("nodes left, all of the canonical vocabulary", ()),
    "label_parts": ("nodes that compute rows, labelled with layer and part", ()),
}


def inspect_json(found: Inspection) -> str:
    """The inspection as one JSON object; `compiles` says whether anything is refused."""
    content: dict[str, Any] = {
        "file": str(found.path),
        "context": found.context,
        "compiles": not found.refused,
        "facts": None if found.facts is None else dataclasses.asdict(found.facts),
        "operators": None if found.spec is None else [dataclasses.asdict(op) for op in found.spec.operators],
        "weight_bytes": None if found.spec is None else found.spec.weight_bytes,
        "cache": found.cache,
        "tokenizer": found.tokenizer,
        "passes": [
            {"name": e.name, "matched": e.matched, "where": _where(e), "notes": list(e.notes)} for e in found.log
        ],
        "refused": list(found.refused),
    }
    return json.dumps(content, indent=1)


def _where(entry: PassLog) -> list[str]:
    """Names of the nodes that show where a pass matched, in the order of the graph."""
    operators = _PASSES.get(entry.name, ("", ()))[1]
    split = (replaced.split(" ", 1) for replaced in entry.replaced) if entry.matched else ()
    return [name for op_type, name in split if op_type in operators]


def inspect_text(found: Inspection) -> str:
    """The inspection as lines for a person: the verdict, what the model is, what the passes did."""
    verdict = f"compiles for a context of {found.context} tokens" if not found.refused else "does not compile"
    lines = [f"{found.path}: {verdict}"]
    lines += [f"  {line}" for line in found.refused]
    rows = _rows(found.facts, found.spec) if found.facts is not None and found.spec is not None else []
    rows += [("cache", found.cache), ("tokenizer", found.tokenizer)]
    lines += [f"  {name:14s}{text}" for name, text in rows]
    lines.append("import passes (matches, what for, first and last node)")
    idle = []
    for entry in found.log:
        if not entry.matched and not entry.notes:
            idle.append(entry.name)
            continue
        where = _where(entry)
        shown = f": {where[0]}" + (f" ... {where[-1]}" if len(where) > 1 else "") if where else ""
        lines.append(f"  {entry.name:20s}{entry.matched:4d}  {_PASSES.get(entry.name, ('', ()))[0]}{shown}")
        notes = list(dict.fromkeys(entry.notes))
        lines += [f"    {note}" for note in notes[:_MOST_NOTES]]
        lines += [f"    and {len(notes) - _MOST_NOTES} more notes (--json has all)"] if len(notes) > _MOST_NOTES else []
    lines += [f"  nothing to do: {', '.join(idle)}"] if idle else []
    return "\n".join(lines)


def _rows(f: DecoderFacts, spec: DecoderSpec) -> list[tuple[str, str]]:
    head = "is the embedding's table" if f.tied else "has its own weights"
    pairs = "neighbours" if f.rope is not None and f.rope.interleaved else "halves"
    learned = any(op.kind == "positions" for op in spec.operators)
    no_rope = "none, positions are learned" if learned else "none"
    no_rope = "none, scores fall with the distance of a key (ALiBi)" if f.alibi else no_rope
    turned = "" if f.rope is None else f"{f.rope.rotary_dim} of a head's {f.head_dim} elements, {pairs} pair up, "
    windows = [op.window for op in spec.attentions]
    local = [str(i) for i, w in enumerate(windows) if w]
    scope = "all layers" if len(local) == len(windows) else f"layer {', '.join(local)}, none in the others"
    pads = {"none": "nothing is masked out", "right": "right only (the export takes lengths)"}.get(f.padding, f.padding)
    return [
        ("family", f"{f.family} or alike"),
        ("size", f"{spec.parameters:,} weights, {spec.weight_bytes:,} bytes"),
        ("layers", f"{f.layers}, hidden {f.hidden}, feed-forward {f.ffn}"),
        ("heads", f"{f.heads} of {f.head_dim}, {f.kv_heads} for keys and values"),
        ("vocabulary", f"{f.vocab}, the head {head}"),
        ("quantisation", f"matrix multiplications {_formats(spec)}; embedding {_format(spec.embedding.format)}"),
        ("attention", _attention(spec.part(Part(ATTENTION)))),
        ("feed-forward", _ffn(spec)),
        ("rotation", no_rope if f.rope is None else f"{turned}positions: {_POSITIONS[f.rope.positions]}"),
        ("window", f"{f.window} tokens in {scope}" if f.window else "none"),
        ("padding", pads),
        ("batch", str(f.batch or "free")),
    ]


def _attention(operators: tuple[Operator, ...]) -> str:
    by_name = {op.name: op for op in operators}
    packed = "q, k, v in one matrix multiplication" if "qkv" in by_name else "q, k, v apart"
    parts = [packed, *(["with bias"] if {"q_bias", "qkv_bias"} & by_name.keys() else [])]
    if "q_norm" in by_name:
        parts.append("q and k normalised" + (" as whole rows" if by_name["q_norm"].groups == 1 else ""))
    return ", ".join([*parts, *(["scores capped"] if by_name["attention"].softcap else [])])


def _ffn(spec: DecoderSpec) -> str:
    operators = spec.part(Part(FFN))
    nonlinearity = next(op.kind for op in operators if op.kind in NONLINEARITIES)
    packed = any(op.name == "gate_up" for op in operators)
    gate = "gate and up in one matrix multiplication" if packed else "gate and up apart"
    layered = (op for op in spec.operators if op.part.kind != HEAD)  # a norm for both blocks stands before the layer
    norms = [op for op in layered if op.kind in NORMS and op.name[:2] not in ("q_", "k_")]
    kind = "layer norms" if norms[0].kind == "layer_norm" else "RMS norms"
    count = len(norms) // spec.layers
    name = nonlinearity.removesuffix("_mul").replace("_", " ").upper()
    kind = kind if count > 1 else kind.removesuffix("s")
    return f"{name}, {gate if nonlinearity.endswith('_mul') else 'no gate'}; {count} {kind} a layer"


def _formats(spec: DecoderSpec) -> str:
    return ", ".join(dict.fromkeys(_format(op.format) for op in spec.operators if op.kind == "linear"))


def _format(stored: Format) -> str:
    if not stored.quantised:
        return stored.dtype
    zeros = "zero points" if stored.zero_dtype == "uint8" else f"{stored.zero_dtype} zero points"
    zeros = zeros if stored.zeros else "symmetric"
    return f"{stored.dtype} in blocks of {stored.block}, {zeros}, {stored.scale_dtype} scales"
