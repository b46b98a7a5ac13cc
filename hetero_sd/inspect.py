"""What an ONNX file is, what each import pass did with it and where, what would be refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from costmodel.decoder import DecoderSpec
from hetero_sd.compile.context import DEFAULT_CONTEXT
from passes.analysis.count_work import count_work
from passes.onnx import LONGEST_CONTEXT, PIPELINE, Decoder, DecoderFacts, canonicalise, canonicalise_up_to
from passes.onnx.load.load import load
from passes.onnx.pass_context import Importing, PassLog, describe, run_pass
from passes.onnx.prove.check_vocabulary import refusals, tells_kind
from targets.errors import UserError

_MOST_KINDS = 8  # kinds of refused nodes that are shown


@dataclass(frozen=True)
class InspectRequest:
    """What is to be looked at.

    Attributes:
        path: the ONNX file.
        context: tokens to check it for; None: DEFAULT_CONTEXT, or as many as the model has positions for.
    """

    path: Path
    context: int | None = None


@dataclass(frozen=True)
class Inspection:
    """What is known of a file.

    Attributes:
        path: the file.
        context: tokens it was checked for.
        facts: what it is; None if it is refused.
        spec: its operators; None if it is refused.
        cache: where its key/value cache is.
        tokenizer: what lies beside it.
        log: what each pass did, as far as they came.
        refused: why it does not compile, and the nodes that nothing rewrote; empty: it compiles.
    """

    path: Path
    context: int
    facts: DecoderFacts | None
    spec: DecoderSpec | None
    cache: str
    tokenizer: str
    log: tuple[PassLog, ...]
    refused: tuple[str, ...]


def inspect(request: InspectRequest) -> Inspection:
    """Run the import and keep what each pass said; a model that is refused is a result, not an error.

    Raises:
        UserError: the file cannot be read at all.
    """
    path, context = request.path, request.context or DEFAULT_CONTEXT
    load(path)
    if request.context is not None and not 2 <= request.context <= LONGEST_CONTEXT:
        raise UserError(f"--context {request.context}: must be 2 to {LONGEST_CONTEXT} tokens")
    try:
        if request.context is None:
            decoder, context = canonicalise_up_to(path, context)
        else:
            decoder = canonicalise(path, context)
        spec = count_work(decoder, path.name)
    except UserError as error:
        return _refused(path, context, str(error).removeprefix(f"{path}: "))
    facts, tokenizer = decoder.facts, _tokenizer(path, decoder.facts.vocab)
    return Inspection(path, context, facts, spec, _cache(decoder), tokenizer, tuple(decoder.log), ())


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
    facts = imp.facts
    read = any(entry.name == "normalise_io_names" for entry in imp.log)
    known = "unknown" if not read else f"{facts.layers} layers of {facts.kv_heads} heads" if facts.layers else "none"
    kinds = told or kinds  # where there are such, what is left besides is their consequence
    left = [f"{op} ({len(names)} x, first node {names[0]!r}): {why}" for (op, why), names in kinds.items()]
    more = [f"and {len(left) - _MOST_KINDS} more kinds of nodes"] if len(left) > _MOST_KINDS else []
    lines = (reason, *left[:_MOST_KINDS], *more)
    return Inspection(path, context, None, None, known, _tokenizer(path, None), tuple(imp.log), lines)
