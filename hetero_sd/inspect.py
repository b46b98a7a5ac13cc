"""`hetero-sd inspect`: what an ONNX file is, what each import pass did with it, and what would be refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passes.import_onnx import PIPELINE, DecoderFacts, canonicalise
from passes.import_onnx.check_vocabulary import refusals
from passes.import_onnx.load import load
from passes.import_onnx.state import Importing, PassLog, describe, run_pass
from targets.errors import UserError

_MOST_NODES = 20  # refused nodes named one by one


@dataclass(frozen=True)
class Inspection:
    """What is known of a file.

    Attributes:
        path: the file.
        context: tokens it was checked for.
        facts: what it is; None if it is refused.
        cache: where its key/value cache is.
        log: what each pass did, as far as they came.
        refused: why it does not compile, and the nodes that nothing rewrote; empty: it compiles.
    """

    path: Path
    context: int
    facts: DecoderFacts | None
    cache: str
    log: tuple[PassLog, ...]
    refused: tuple[str, ...]


def inspect(path: Path, context: int) -> Inspection:
    """Run the import and keep what each pass said; a model that is refused is a result, not an error.

    Raises:
        UserError: the file cannot be read at all.
    """
    load(path)
    try:
        decoder = canonicalise(path, context)
    except UserError as error:
        return _refused(path, context, str(error).removeprefix(f"{path}: "))
    added = next(entry.matched for entry in decoder.log if entry.name == "add_cache")
    cache = "none in the file: the import adds it" if added else "inputs and outputs, one key and one value a layer"
    return Inspection(path, context, decoder.facts, cache, tuple(decoder.log), ())


def _refused(path: Path, context: int, reason: str) -> Inspection:
    imp, left = Importing(load(path), context), []
    try:
        for run in PIPELINE:
            if run.__name__ == "check_vocabulary":
                left = [f"{describe(node)}: {why}" for node, why in refusals(imp)]
            run_pass(run, imp)
    except Exception:  # the reason is known already; here only what came before it is wanted
        pass
    layers = imp.facts.get("layers")
    cache = "unknown" if layers is None else f"{layers} layers" if layers else "none"
    nodes = [n for n in left if n != reason]
    more = [f"and {len(nodes) - _MOST_NODES} more nodes"] if len(nodes) > _MOST_NODES else []
    return Inspection(path, context, None, cache, tuple(imp.log), (reason, *nodes[:_MOST_NODES], *more))


def as_json(found: Inspection) -> str:
    """The inspection as one JSON object; `compiles` says whether anything is refused."""
    content: dict[str, Any] = {
        "file": str(found.path),
        "context": found.context,
        "compiles": not found.refused,
        "facts": None if found.facts is None else dataclasses.asdict(found.facts),
        "cache": found.cache,
        "passes": [{"name": e.name, "matched": e.matched, "notes": list(e.notes)} for e in found.log],
        "refused": list(found.refused),
    }
    return json.dumps(content, indent=1)


def as_text(found: Inspection) -> str:
    """The inspection as lines for a person."""
    lines = [f"{found.path}"]
    f = found.facts
    if f is not None:
        rope = "none" if f.rope is None else f"{f.rope.rotary_dim} of {f.head_dim}, positions from {f.rope.positions}"
        tied = "tied with the embedding" if f.tied else "its own weights"
        lines += [
            f"  family        {f.family}-like",
            f"  layers        {f.layers}, hidden {f.hidden}, feed-forward {f.ffn}",
            f"  heads         {f.heads} of {f.head_dim}, {f.kv_heads} for keys and values",
            f"  vocabulary    {f.vocab}, head {tied}",
            f"  weights       {f.weight_dtype}",
            f"  rotation      {rope}",
            f"  window        {f.window or 'none'}",
            f"  padding       {f.padding}",
            f"  batch         {f.batch or 'free'}",
        ]
    lines += [f"  cache         {found.cache}", f"  context       {found.context} tokens", "passes"]
    for entry in found.log:
        lines.append(f"  {entry.name:22s}{entry.matched:5d}")
        lines += [f"    {note}" for note in entry.notes]
    lines += ["refused", *(f"  {line}" for line in found.refused)] if found.refused else ["compiles"]
    return "\n".join(lines)
