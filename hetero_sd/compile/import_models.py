"""Both models of a pair as graphs, within the longest context that both have positions for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from costmodel.decoder import DecoderSpec
from costmodel.format import FLOAT, INT8
from hetero_sd.compile.context import DEFAULT_CONTEXT, rows_within, whole_context
from hetero_sd.compile.tokenizer_files import TokenizerFiles
from hetero_sd.progress import Progress
from hetero_sd.quantisation.recipes import Quantisation
from targets.device import Board
from targets.errors import UserError
from targets.kv_format import DEFAULT_KV

if TYPE_CHECKING:
    from passes.onnx import Decoder

Imported = dict[str, "tuple[Decoder, DecoderSpec]"]


def import_models(
    asked: int | None,
    sources: dict[str, Path],
    board: Board,
    tokenizer: TokenizerFiles,
    activations: str | None,
    progress: Progress,
    quantisation: Quantisation | None = None,
    kv: str = DEFAULT_KV,
) -> tuple[Imported, int, tuple[str, ...]]:
    """(the models by role, rows of their caches, what to tell the user): as many rows as all models have positions for.

    The drafter comes first: it is the smaller one, and what is refused because of it costs no import of the target.

    Args:
        asked: rows, or None for the default.
        sources: the ONNX files by role.
        board: the rows are whole tiles of its kernels.
        tokenizer: of both models.
        activations: FLOAT or INT8 for block-quantised matrix multiplications; None takes what each file allows.
        progress: of the import.
        quantisation: of float weights; None: they stay as they are.
        kv: the type in which keys and values are stored.

    Raises:
        UserError: a model has fewer positions than the context that was asked for, or too few for any; int8 activations
            were asked for where no model can have them.
    """
    from passes.onnx import ContextTooLong

    context, done = whole_context(board, asked or DEFAULT_CONTEXT), False
    notes: tuple[str, ...] = ()
    while not done:
        imported: Imported = {}
        try:
            for role in sorted(sources, key=list(sources).index, reverse=True):
                with progress.step(f"{role}: import {sources[role].name}"):
                    decoder, spec = _import(role, sources[role], context, tokenizer, activations, quantisation)
                    imported[role] = decoder, replace(spec, kv=kv)
            done = True
        except ContextTooLong as error:
            rows = rows_within(board, error.longest)
            if asked is not None or rows == 0:
                tiles = "" if rows in (0, error.longest) else f" ({rows}, in whole tiles of this board's kernels)"
                raise UserError(f"{error}{tiles}") from None
            context = rows
            notes = (
                f"context {rows} tokens, not {DEFAULT_CONTEXT}: {sources[role]} has positions for {error.longest}",
            )
    if activations == INT8 and all(spec.activations == FLOAT for _, spec in imported.values()):
        raise UserError(
            f"--activations {INT8}: no model has int4 or int8 weights in blocks of a multiple of 32; leave it out"
        )
    notes += tuple(
        f"{role}: int8 activations, as {_allows(role, path, quantisation)}; --activations {FLOAT} multiplies floats"
        for role, path in sources.items()
        if activations is None and imported[role][1].activations == INT8
    )
    return {role: imported[role] for role in sources}, context, notes


def _allows(role: str, path: Path, quantisation: Quantisation | None) -> str:
    if quantisation is not None and role in quantisation.recipes:
        return "with weights that are quantised here"
    return f"{path} allows"


def _import(
    role: str,
    path: Path,
    context: int,
    tokenizer: TokenizerFiles,
    activations: str | None,
    quantisation: Quantisation | None,
) -> tuple[Decoder, DecoderSpec]:
    """One model of the pair as a graph, and its spec, from which its cost is predicted."""
    from passes.analysis.count_work import count_work
    from passes.onnx import canonicalise

    given = () if quantisation is None else (quantisation.recipes.get(role), quantisation.scales.get(role))
    decoder = canonicalise(path, context, *given)
    if tokenizer.vocab > decoder.facts.vocab:
        raise UserError(
            f"{role} model {path} knows {decoder.facts.vocab} token ids, the tokenizer in {tokenizer.folder} has "
            f"{tokenizer.vocab}: they do not belong together"
        )
    spec = count_work(decoder, path.name)
    codes = activations == INT8 or (activations is None and decoder.facts.int8_activations)
    return decoder, spec.with_int8_activations() if codes else spec
