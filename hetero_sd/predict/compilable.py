"""What of a prediction a bundle of this version can run, and what the rest would gain."""

from __future__ import annotations

from dataclasses import replace

from costmodel.processor import CpuSlice
from costmodel.question import NGRAM, Question, Variant
from costmodel.schema.plan import OVERLAPPED, SEQUENTIAL, TARGET_ONLY


def compilable(variant: Variant) -> bool:
    """Whether a plan can say it: what the CPU does is done by one slice of one cluster, overlapped by one a model.

    Drafts from the text are asked for where a bundle runs: the texts decide whether they pay.
    """
    slices = _slices(variant)
    if slices is None:
        return False
    return variant.mode == OVERLAPPED or (variant.mode in (TARGET_ONLY, SEQUENTIAL) and slices <= 1)


def _slices(variant: Variant) -> int | None:
    """How many slices of a cluster it uses; None where threads of several clusters work together."""
    placements = [p for p in (variant.target_placement, variant.draft_placement) if p is not None]
    cores = {s.processor.name for p in placements for s in p.segments if isinstance(s.processor, CpuSlice)}
    return None if any("+" in name for name in cores) else len(cores)


def why_not_planned(variant: Variant, best: Variant) -> str:
    """What the variant would gain, and how it is asked for, or what of it cannot be run."""
    gain = f"{variant.tokens_per_s / best.tokens_per_s:.2f} x the chosen one"
    if variant.mode == NGRAM and _slices(variant) in (0, 1):
        return f"{gain}; `run.py --drafter ngram` drafts from the text, how often it repeats decides"
    return f"{gain}; not in this version: threads of several clusters, or others for the drafter than for the target"


def bundle_question(question: Question) -> Question:
    """The same question for what a bundle can run."""
    return replace(question, one_process=True, ngram_alpha=None)
