"""Any decoder export -> the canonical ONNX decoder: opset-23 Attention with cache, RMSNormalization, RotaryEmbedding.

`PIPELINE` is the table of contents; each pass proves what it rewrites and says why it declines. The order matters:
names first, because later passes ask for inputs by name; branches next, so that one graph is left; float32 before the
folding, which removes the casts that then do nothing; shapes before the walks through attention, which must not stray
into the rest of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passes.onnx.facts import DecoderFacts, RopeFacts, decoder_facts
from passes.onnx.label_parts import label_parts
from passes.onnx.load.load import load
from passes.onnx.pass_context import Importing, Pass, PassLog, run_pass
from passes.onnx.prove.check_logits import check_logits
from passes.onnx.prove.check_vocabulary import check_vocabulary
from passes.onnx.prove.context_limit import ContextTooLong, check_stated_positions, too_long
from passes.onnx.quantise.recipe import Recipe
from passes.onnx.rewrite.add_cache import add_cache
from passes.onnx.rewrite.blocks_of_columns import blocks_of_columns
from passes.onnx.rewrite.cache_axes import cache_axes
from passes.onnx.rewrite.canonical_matmuls import canonical_matmuls
from passes.onnx.rewrite.drop_fake_quantisation import drop_fake_quantisation
from passes.onnx.rewrite.exact_quantised import exact_quantised
from passes.onnx.rewrite.find_head_dim import find_head_dim
from passes.onnx.rewrite.float_activations import float_activations
from passes.onnx.rewrite.float_positions import float_positions
from passes.onnx.rewrite.fold_constants import fold_constants
from passes.onnx.rewrite.fuse_activations import fuse_activations
from passes.onnx.rewrite.fuse_altup import fuse_altup
from passes.onnx.rewrite.fuse_attention import fuse_attention
from passes.onnx.rewrite.fuse_layer_norm import fuse_layer_norm
from passes.onnx.rewrite.fuse_magnitudes import fuse_magnitudes
from passes.onnx.rewrite.fuse_rms_norm import fuse_rms_norm
from passes.onnx.rewrite.fuse_xielu import fuse_xielu
from passes.onnx.rewrite.join_head_norms import join_head_norms
from passes.onnx.rewrite.last_axis import last_axis
from passes.onnx.rewrite.learned_positions import learned_positions
from passes.onnx.rewrite.lower_dequantize import lower_dequantize
from passes.onnx.rewrite.lower_group_query import lower_group_query
from passes.onnx.rewrite.norm_by_head import norm_by_head
from passes.onnx.rewrite.normalise_io_names import normalise_io_names
from passes.onnx.rewrite.pick_branch import pick_branch
from passes.onnx.rewrite.plain_inputs import plain_inputs
from passes.onnx.rewrite.plain_token_ids import plain_token_ids
from passes.onnx.rewrite.quantise_weights import quantise_weights
from passes.onnx.rewrite.resolve_shapes import resolve_shapes
from passes.onnx.rewrite.rows_by_layer import rows_by_layer
from passes.onnx.rewrite.split_packed import split_packed
from passes.onnx.rewrite.tie_equal_head import tie_equal_head
from passes.onnx.rewrite.unflatten_rows import unflatten_rows
from passes.onnx.rewrite.unfuse_linear import unfuse_linear
from passes.onnx.rewrite.unfuse_onnxruntime import unfuse_onnxruntime
from passes.onnx.rewrite.ungroup_packed import ungroup_packed
from passes.onnx.rewrite.unpadded_table import unpadded_table
from passes.onnx.rewrite.unshare_caches import unshare_caches
from passes.onnx.rewrite.unstack_caches import unstack_caches
from passes.onnx.rewrite.upcast_to_float32 import upcast_to_float32
from passes.onnx.rewrite.widen_bfloat16 import widen_bfloat16
from targets.errors import UserError
from targets.memory import lacks_memory

__all__ = [
    "LONGEST_CONTEXT",
    "PIPELINE",
    "ContextTooLong",
    "Decoder",
    "DecoderFacts",
    "PassLog",
    "RopeFacts",
    "canonicalise",
    "canonicalise_up_to",
]

PIPELINE: list[Pass] = [
    unstack_caches,
    plain_inputs,
    cache_axes,
    normalise_io_names,
    pick_branch,
    unfuse_linear,
    upcast_to_float32,
    plain_token_ids,
    quantise_weights,
    widen_bfloat16,
    drop_fake_quantisation,
    float_activations,
    find_head_dim,
    last_axis,
    fold_constants,
    lower_dequantize,
    unpadded_table,
    float_positions,
    blocks_of_columns,
    unfuse_onnxruntime,
    check_logits,
    resolve_shapes,
    fuse_layer_norm,
    fuse_rms_norm,
    join_head_norms,
    norm_by_head,
    split_packed,
    canonical_matmuls,
    unflatten_rows,
    ungroup_packed,
    tie_equal_head,
    fuse_activations,
    fuse_xielu,
    rows_by_layer,
    fuse_magnitudes,
    fuse_altup,
    add_cache,
    learned_positions,
    unshare_caches,
    fuse_attention,
    lower_group_query,
    exact_quantised,
    check_vocabulary,
    label_parts,
]


LONGEST_CONTEXT = 1 << 20
_ROUNDED_CONSTANTS = (
    "; its constants are rounded to 8 bits, too: quantise with op_types_to_quantize=['MatMul', 'Gemm', 'Gather']"
)
_SMALLEST_LIMIT_BYTES = 128 << 20  # a mask of [2, 8, 1024, 1024] numbers has half of it


@dataclass(frozen=True)
class Decoder:
    """A decoder in canonical form.

    Attributes:
        model: `onnx_ir.Model`, opset 23; weights are read when asked for.
        facts: what it is.
        log: what each pass did and declined.
        stored_bytes: of the weights in the file.
    """

    model: Any
    facts: DecoderFacts
    log: list[PassLog]
    stored_bytes: int = 0


def canonicalise(
    path: Path, context: int, recipe: Recipe | None = None, scales: dict[Any, Any] | None = None
) -> Decoder:
    """Read an export and bring it to the canonical form.

    Args:
        path: the ONNX file; weights may lie beside it in external files.
        context: positions the rope tables shall cover, at least 2.
        recipe: the formats that float weights get; None leaves them as they are.
        scales: those that were searched for the file before, which is added to; None knows of none.

    Raises:
        ContextTooLong: the export has fewer positions than the context.
        UserError: not a readable ONNX file, or not a decoder of a kind we know; one line naming file and reason.
    """
    if not 2 <= context <= LONGEST_CONTEXT:
        raise UserError(f"a context of {context} tokens: it must be 2 to {LONGEST_CONTEXT}")
    model = load(path)
    stored = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    imp = Importing(model, context, largest_bytes=_SMALLEST_LIMIT_BYTES + 2 * stored, recipe=recipe)
    imp.scales = imp.scales if scales is None else scales
    try:
        check_stated_positions(imp)
        for run in PIPELINE:
            run_pass(run, imp)
        facts = decoder_facts(imp)
    except UserError as error:
        raise too_long(imp, f"{path}: {error}{_ROUNDED_CONSTANTS if imp.facts.rounded_constants else ''}") from error
    except Exception as error:  # a graph that is well formed but makes no sense can fail anywhere
        step = PIPELINE[len(imp.log)].__name__ if len(imp.log) < len(PIPELINE) else "decoder_facts"
        if lacks_memory(error):
            raise UserError(f"{path}: {step}: out of memory") from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{path}: {step} can make no sense of the graph ({reason}); does onnx.checker pass?") from error
    return Decoder(imp.model, facts, imp.log, stored)


def canonicalise_up_to(path: Path, most: int) -> tuple[Decoder, int]:
    """The decoder for the longest context of at most `most` tokens that the export has positions for, and that context.

    Raises:
        UserError: as `canonicalise`.
    """
    while True:
        try:
            return canonicalise(path, most), most
        except ContextTooLong as error:
            if error.longest < 2:
                raise
            most = error.longest
