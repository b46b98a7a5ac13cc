"""`hetero-sd inspect`: what an ONNX file is, what each import pass did with it and where, what would be refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodel.decoder import NONLINEARITIES, NORMS, DecoderSpec, Operator
from costmodel.format import Format
from costmodel.place import ATTENTION, FFN, Part
from passes.analysis.count_work import count_work
from passes.onnx import LONGEST_CONTEXT, PIPELINE, Decoder, DecoderFacts, canonicalise, canonicalise_up_to
from passes.onnx.load.load import load
from passes.onnx.pass_context import Importing, PassLog, describe, run_pass
from passes.onnx.prove.check_vocabulary import refusals, tells_kind
from targets.errors import UserError

DEFAULT_CONTEXT = 1024
_MOST_KINDS = 8  # kinds of refused nodes, and notes of a pass, that are shown
_POSITIONS = {
    "input": "the input position_ids",
    "past": "counted on from the cache",
    "mask": "the tokens counted in attention_mask",
}
# what a pass looks for, and the operators that show where it found it
_PASSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "normalise_io_names": ("inputs and outputs renamed", ()),
    "pick_branch": ("branches decided for this context", ("If",)),
    "upcast_to_float32": ("16-bit values computed in float32, weights kept as stored", ()),
    "find_head_dim": ("cache inputs given their head dimension", ()),
    "last_axis": ("axes of softmaxes and norms written as the last one", ()),
    "fold_constants": ("constants computed, idle nodes removed", ()),
    "lower_dequantize": ("dequantised weights made block-quantised products", ("DequantizeLinear",)),
    "unfuse_onnxruntime": ("nodes of onnxruntime's optimiser written out", ("FusedMatMul", "SkipLayerNormalization")),
    "check_logits": ("logits of every token", ()),
    "resolve_shapes": ("shapes of computed values taken from the inputs", ("Shape",)),
    "fuse_rms_norm": (
        "norms recognised",
        ("ReduceMean", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"),
    ),
    "norm_by_head": ("norms of single heads", ("RMSNormalization",)),
    "split_packed": ("packed projections split", ("Slice", "Split")),
    "canonical_products": ("products and gates put in one form", ("Gemm", "Div", "Swish", "QuickGelu")),
    "tie_equal_head": ("heads that are the embedding once more, stored once", ()),
    "fuse_activations": ("GELU and soft caps recognised", ("Tanh", "Erf", "Gelu", "FastGelu", "BiasGelu")),
    "add_cache": ("caches added", ()),
    "learned_positions": ("tables of learned positions", ("Gather",)),
    "fuse_attention": ("attentions recognised", ("Softmax", "Attention", "MultiHeadAttention")),
    "lower_group_query": ("GroupQueryAttention read", ("GroupQueryAttention",)),
    "exact_quantised": ("activations of quantised products left exact (accuracy_level 0)", ()),
    "check_vocabulary": ("nodes left, all of the canonical vocabulary", ()),
    "label_parts": ("nodes that compute rows, labelled with layer and part", ()),
}


@dataclass(frozen=True)
class Inspection:
    """What is known of a file.

    Attributes:
        path: the file.
        context: tokens it was checked for.
        facts: what it is; None if it is refused.
        shape: its operators; None if it is refused.
        cache: where its key/value cache is.
        tokenizer: what lies beside it.
        log: what each pass did, as far as they came.
        refused: why it does not compile, and the nodes that nothing rewrote; empty: it compiles.
    """

    path: Path
    context: int
    facts: DecoderFacts | None
    shape: DecoderSpec | None
    cache: str
    tokenizer: str
    log: tuple[PassLog, ...]
    refused: tuple[str, ...]


def inspect(path: Path, context: int | None = None) -> Inspection:
    """Run the import and keep what each pass said; a model that is refused is a result, not an error.

    Without a context it is checked for DEFAULT_CONTEXT, or as many as the model has positions for.

    Raises:
        UserError: the file cannot be read at all.
    """
    load(path)
    if context is not None and not 2 <= context <= LONGEST_CONTEXT:
        raise UserError(f"--context {context}: must be 2 to {LONGEST_CONTEXT} tokens")
    given, context = context, context or DEFAULT_CONTEXT
    try:
        if given is None:
            decoder, context = canonicalise_up_to(path, context)
        else:
            decoder = canonicalise(path, given)
        shape = count_work(decoder, path.name)
    except UserError as error:
        return _refused(path, context, str(error).removeprefix(f"{path}: "))
    facts, tokenizer = decoder.facts, _tokenizer(path, decoder.facts.vocab)
    return Inspection(path, context, facts, shape, _cache(decoder), tokenizer, tuple(decoder.log), ())


def _cache(decoder: Decoder) -> str:
    added = next(entry.matched for entry in decoder.log if entry.name == "add_cache")
    return "none in the file: the import adds it" if added else "inputs and outputs, one key and one value a layer"


def _tokenizer(path: Path, vocab: int | None) -> str:
    from hetero_sd.compile.tokenizer_files import find_tokenizer

    try:
        found = find_tokenizer(None, [path], (0,))
    except UserError as error:
        return "none beside the file: compile needs --tokenizer" if "no tokenizer.json" in str(error) else str(error)
    more = vocab is not None and found.vocab > vocab
    misfit = f", more than the model's {vocab}: they do not belong together" if more else ""
    return f"{found.folder / 'tokenizer.json'}, {found.vocab} ids{misfit}"


def _refused(path: Path, context: int, reason: str) -> Inspection:
    imp = Importing(load(path), context)
    kinds: dict[tuple[str, str], list[str]] = {}
    told: dict[tuple[str, str], list[str]] = {}  # those that say by themselves what kind of model it is
    try:
        for run in PIPELINE:
            if run.__name__ == "check_vocabulary":
                for node, why in refusals(imp):
                    if not reason.startswith(describe(node)):
                        found = told if tells_kind(node) else kinds
                        found.setdefault((f"{node.domain or 'ai.onnx'}.{node.op_type}", why), []).append(node.name)
            run_pass(run, imp)
    except Exception:  # the reason is known already; here only what came before it is wanted
        pass
    layers, heads = imp.facts.get("layers"), imp.facts.get("kv_heads")
    known = "unknown" if layers is None else f"{layers} layers of {heads} heads" if layers else "none"
    kinds = told or kinds  # where there are such, what is left besides is their consequence
    left = [f"{op} ({len(names)} x, first node {names[0]!r}): {why}" for (op, why), names in kinds.items()]
    more = [f"and {len(left) - _MOST_KINDS} more kinds of nodes"] if len(left) > _MOST_KINDS else []
    lines = (reason, *left[:_MOST_KINDS], *more)
    return Inspection(path, context, None, None, known, _tokenizer(path, None), tuple(imp.log), lines)


def as_json(found: Inspection) -> str:
    """The inspection as one JSON object; `compiles` says whether anything is refused."""
    content: dict[str, Any] = {
        "file": str(found.path),
        "context": found.context,
        "compiles": not found.refused,
        "facts": None if found.facts is None else dataclasses.asdict(found.facts),
        "operators": None if found.shape is None else [dataclasses.asdict(op) for op in found.shape.operators],
        "weight_bytes": None if found.shape is None else found.shape.weight_bytes,
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


def as_text(found: Inspection) -> str:
    """The inspection as lines for a person: the verdict, what the model is, what the passes did."""
    verdict = f"compiles for a context of {found.context} tokens" if not found.refused else "does not compile"
    lines = [f"{found.path}: {verdict}"]
    lines += [f"  {line}" for line in found.refused]
    rows = _rows(found.facts, found.shape) if found.facts is not None and found.shape is not None else []
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
        lines += [f"    {note}" for note in notes[:_MOST_KINDS]]
        lines += [f"    and {len(notes) - _MOST_KINDS} more notes (--json has all)"] if len(notes) > _MOST_KINDS else []
    lines += [f"  nothing to do: {', '.join(idle)}"] if idle else []
    return "\n".join(lines)


def _rows(f: DecoderFacts, shape: DecoderSpec) -> list[tuple[str, str]]:
    head = "is the embedding's table" if f.tied else "has its own weights"
    pairs = "neighbours" if f.rope is not None and f.rope.interleaved else "halves"
    learned = any(op.kind == "positions" for op in shape.operators)
    no_rope = "none, positions are learned" if learned else "none"
    turned = "" if f.rope is None else f"{f.rope.rotary_dim} of a head's {f.head_dim} elements, {pairs} pair up, "
    windows = [op.window for op in shape.attentions]
    local = [str(i) for i, w in enumerate(windows) if w]
    scope = "all layers" if len(local) == len(windows) else f"layer {', '.join(local)}, none in the others"
    pads = {"none": "nothing is masked out", "right": "right only (the export takes lengths)"}.get(f.padding, f.padding)
    return [
        ("family", f"{f.family} or alike"),
        ("size", f"{shape.parameters:,} weights, {shape.weight_bytes:,} bytes"),
        ("layers", f"{f.layers}, hidden {f.hidden}, feed-forward {f.ffn}"),
        ("heads", f"{f.heads} of {f.head_dim}, {f.kv_heads} for keys and values"),
        ("vocabulary", f"{f.vocab}, the head {head}"),
        ("quantisation", f"matrix multiplications {_formats(shape)}; embedding {_format(shape.embedding.format)}"),
        ("attention", _attention(shape.part(Part(ATTENTION)))),
        ("feed-forward", _ffn(shape)),
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


def _ffn(shape: DecoderSpec) -> str:
    operators = shape.part(Part(FFN))
    nonlinearity = next(op.kind for op in operators if op.kind in NONLINEARITIES)
    packed = any(op.name == "gate_up" for op in operators)
    gate = "gate and up in one matrix multiplication" if packed else "gate and up apart"
    norms = [
        op for op in (*shape.part(Part(ATTENTION)), *operators) if op.kind in NORMS and op.name[:2] not in ("q_", "k_")
    ]
    kind = "layer norms" if norms[0].kind == "layer_norm" else "RMS norms"
    name = nonlinearity.removesuffix("_mul").upper()
    return f"{name}, {gate if nonlinearity.endswith('_mul') else 'no gate'}; {len(norms)} {kind} a layer"


def _formats(shape: DecoderSpec) -> str:
    return ", ".join(dict.fromkeys(_format(op.format) for op in shape.operators if op.kind == "linear"))


def _format(stored: Format) -> str:
    if not stored.quantised:
        return stored.dtype
    zeros = "zero points" if stored.zero_dtype == "uint8" else f"{stored.zero_dtype} zero points"
    zeros = zeros if stored.zeros else "symmetric"
    return f"{stored.dtype} in blocks of {stored.block}, {zeros}, {stored.scale_dtype} scales"
