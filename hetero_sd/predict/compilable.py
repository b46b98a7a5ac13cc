"""What of a prediction a bundle of this version can run, and what the rest would gain."""

from __future__ import annotations

from dataclasses import replace

from costmodel.processor import CpuSlice
from costmodel.question import NGRAM, Question, Variant
from costmodel.schema.plan import OVERLAPPED, SEQUENTIAL, TARGET_ONLY


def compilable(variant: Variant) -> bool:
    """Whether a bundle can run it: what the CPU does is done by one slice of one cluster, overlapped by one a model."""
    placements = [p for p in (variant.target_placement, variant.draft_placement) if p is not None]
    cores = {s.processor.name for p in placements for s in p.segments if isinstance(s.processor, CpuSlice)}
    if any("+" in name for name in cores):
        return False
    return variant.mode == OVERLAPPED or (variant.mode in (TARGET_ONLY, SEQUENTIAL) and len(cores) <= 1)


def why_not_yet(variant: Variant, best: Variant) -> str:
    """What the variant would gain, and what of it cannot be run."""
    several = "threads of several clusters, or others for the drafter than for the target"
    missing = "drafting from the text" if variant.mode == NGRAM else several
    return f"{variant.tokens_per_s / best.tokens_per_s:.2f} x the chosen one; not in this version: {missing}"


def bundle_question(question: Question) -> Question:
    """The same question for what a bundle can run."""
    return replace(question, one_process=True, ngram_alpha=None)
